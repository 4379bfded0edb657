"""The hotclip server: encodes, learns and swaps weights while it serves."""
