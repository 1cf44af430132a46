"""Folders and files that this user alone can have written, and the seal of what this user wrote. Imports nothing."""
