"""What a change of version changes: measured before it is made. numpy alone, no torch here."""
