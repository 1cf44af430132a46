"""Video files in, batches of clips out. Knows video, knows no network."""
