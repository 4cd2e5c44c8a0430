"""The folder on disk: its tables, manifest, parts, writer and reader."""
