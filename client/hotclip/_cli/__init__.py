"""The `hotclip` command."""
