"""The demonstration: search in German, learn German, swap it in while everybody searches."""
