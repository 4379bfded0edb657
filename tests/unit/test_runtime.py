"""What is measured on one machine is not taken for another."""

from hotclip_server.runtime import describe_machine


def test_a_machine_is_named_by_what_speed_and_rounding_depend_on() -> None:
    named = describe_machine("cpu", 2)
    assert named == describe_machine("cpu", 2)
    assert named != describe_machine("cpu", 3)
    assert named.startswith("cpu, ")
    assert "torch " in named
    assert "|" not in named
