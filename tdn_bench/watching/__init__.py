"""The live view: a source's newest frames, a window that slides over them, and its labels."""
