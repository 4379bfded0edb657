"""The client's public names: adding one is a decision, removing one breaks its users."""

import hotclip

NAMES = """
    Architecture Artifact ArtifactFormat AsyncClient AsyncRun Backbone BadRow Between Bridge
    Checkpoint Choice Client Collection CollectionDrift CollectionNeed Combined Dataset DatasetFile
    DatasetReport DriftReport Embeddings Encoded EngineInfo Example FeedbackDataset Filter Gate
    Heartbeat Hit Hits HotclipError Image ImagePreprocessing ItemError Job JobEvent JobKind JobState
    Latency Limits Lineage LocalModel LogLine Match Measurement Model Pair Point PointId RankScore
    Ranking Recorded Resumed Run ServerInfo ShadowTraffic StateChange StoredPoint Text Timings
    TowerDrift Unused UploadProgress Upserted Vector Version VersionInfo VersionState errors
    get_model
"""


def test_the_public_names_are_these() -> None:
    assert hotclip.__all__ == NAMES.split()
