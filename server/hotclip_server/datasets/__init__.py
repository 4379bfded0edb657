"""Uploaded sets of pairs: checked row by row, stored once by content. No torch here."""
