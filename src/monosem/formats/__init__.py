"""Readers and writers of SAE file formats, one file each."""
