"""The client for asyncio; the twin of the one that blocks."""
