"""Gloo is told the interface of the node's address only where the host's name would lead it to another."""

from __future__ import annotations

from spotrun.launcher.interfaces import GLOO_ENV, gloo_environment, interface_to_name

INTERFACES = {"lo": ["127.0.0.1", "::1"], "eth0": ["10.0.0.7", "fe80::1"], "eth1": ["192.168.1.7"]}


def test_a_host_name_that_leads_to_loopback_is_not_followed() -> None:
    assert interface_to_name(["10.0.0.7"], ["127.0.1.1"], INTERFACES) == "eth0"
    assert interface_to_name(["10.0.0.7"], [], INTERFACES) == "eth0", "nor one that nobody knows"


def test_a_host_name_that_leads_to_another_network_is_not_followed() -> None:
    assert interface_to_name(["192.168.1.7"], ["10.0.0.7"], INTERFACES) == "eth1"


def test_a_host_name_that_leads_to_the_nodes_address_needs_no_help() -> None:
    assert interface_to_name(["10.0.0.7"], ["10.0.0.7", "::1"], INTERFACES) is None


def test_an_address_that_no_interface_has_is_left_to_the_user() -> None:
    assert interface_to_name(["203.0.113.9"], ["127.0.1.1"], INTERFACES) is None


def test_what_the_user_set_holds() -> None:
    assert gloo_environment("127.0.0.1", {GLOO_ENV: "ib0"}) == {}
