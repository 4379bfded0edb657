"""The recipe of `builtin:mini`: a small CLIP trained from scratch on emoji drawings."""
