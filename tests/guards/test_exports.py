"""The client's public names: adding one is a decision, removing one breaks its users."""

import hotclip

NAMES = """
    Architecture Artifact ArtifactFormat AsyncClient AsyncRun Backbone BadRow Between Checkpoint
    Client Collection Combined Dataset DatasetFile DatasetReport Embeddings Encoded EngineInfo
    Example Filter Gate Heartbeat Hit Hits HotclipError Image ImagePreprocessing ItemError Job
    JobEvent JobKind JobState Limits Lineage LocalModel LogLine Match Measurement Model Pair Point
    PointId RankScore Ranking Resumed Run ServerInfo StateChange StoredPoint Text Timings
    UploadProgress Upserted Vector Version VersionInfo VersionState errors get_model
"""


def test_the_public_names_are_these() -> None:
    assert hotclip.__all__ == NAMES.split()
