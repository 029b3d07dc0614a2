"""What one cloud alone does, over real HTTP: tokens, long polls, approvals, and the meaning of each event."""

from __future__ import annotations

import time

import pytest

from spotrun.launcher.notices.alibaba import AlibabaSource
from spotrun.launcher.notices.aws import AwsSource
from spotrun.launcher.notices.azure import AzureSource
from spotrun.launcher.notices.gcp import GcpSource
from spotrun.launcher.notices.metadata import Pace
from spotrun.launcher.notices.notice import Grade
from tests.fakes.clouds import AlibabaServer, AwsServer, AzureServer, GcpServer
from tests.fakes.metadata import Fault
from tests.notice_sources import HASTY, QUICK, about, running
from tests.waiting import DEADLINE_S


def test_aws_a_token_is_shown_and_renewed_when_it_is_refused() -> None:
    with AwsServer() as server:
        with running(AwsSource({AwsSource.url_env: server.url}, QUICK)) as heard:
            server.wait_for_requests(4, "spot")
            assert len(server.requests("token")) == 1  # one is enough for all
            server.forget_tokens()
            server.spot()
            heard.wait(1)
        tokens = server.requests("token")
        assert len(tokens) == 2
        assert tokens[0].method == "PUT" and tokens[0].headers["x-aws-ec2-metadata-token-ttl-seconds"] == "3600"


def test_aws_a_token_is_renewed_before_it_expires() -> None:
    server = AwsServer()
    server.token_ttl_s = 15.0  # as much as the time by which it is renewed early
    with server, running(AwsSource({AwsSource.url_env: server.url}, QUICK)):
        server.wait_for_requests(4, "spot")
    asked = server.requests("token")
    assert len(asked) >= 4


@pytest.mark.parametrize("status", [403, 404, 405])
def test_aws_the_older_protocol_is_spoken_where_tokens_are_refused(status: int) -> None:
    server = AwsServer()
    server.needs_token, server.refuses_token = False, status
    server.spot()
    with server:
        source = AwsSource({AwsSource.url_env: server.url}, QUICK)
        assert source.detect()
        with running(source) as heard:
            assert heard.wait(1)[0].kind == "preempt"
            server.wait_for_requests(3, "spot")
    assert "x-aws-ec2-metadata-token" not in server.requests("spot")[-1].headers
    assert len(server.requests("token")) == 2  # one in detect, one in run


def test_aws_the_older_protocol_is_spoken_where_the_token_gets_no_answer() -> None:
    server = AwsServer()
    server.needs_token = False
    server.fault, server.fault_paths = Fault.HANG, "token"  # a container is one hop too far away for the answer
    server.spot()
    with server, running(AwsSource({AwsSource.url_env: server.url}, HASTY)) as heard:
        heard.wait(1)


def test_aws_a_rebalance_recommendation_is_a_reason_to_save_and_to_stay() -> None:
    with AwsServer() as server, running(AwsSource({AwsSource.url_env: server.url}, QUICK)) as heard:
        server.rebalance()
        (notice,) = heard.wait(1)
        assert (notice.kind, notice.grade) == ("rebalance", Grade.MAY)
        server.spot(120.0)
        notice = heard.wait(2)[1]
        assert (notice.kind, notice.grade) == ("preempt", Grade.WILL)


def test_aws_a_hibernation_has_no_lead() -> None:
    with AwsServer() as server, running(AwsSource({AwsSource.url_env: server.url}, QUICK)) as heard:
        server.spot(120.0, "hibernate")
        assert heard.wait(1)[0].seconds_left == 0.0


def test_aws_maintenance_is_a_risk_while_it_is_far_off_and_certain_when_it_is_near() -> None:
    with AwsServer() as server, running(AwsSource({AwsSource.url_env: server.url}, QUICK)) as heard:
        server.maintenance(3 * 86400.0, state="completed")
        server.wait_for_requests(3, "maintenance")
        server.maintenance(3 * 86400.0)
        far = heard.wait(1)[0]
        server.maintenance(300.0)
        near = heard.wait(2)[1]
        server.maintenance(300.0, state="canceled")
        canceled = heard.wait(3)[2]
    assert (far.grade, far.seconds_left) == (Grade.MAY, about(3 * 86400.0))
    assert (near.grade, near.seconds_left) == (Grade.WILL, about(300.0))
    assert canceled.withdrawn
    assert far.id == near.id == canceled.id == "instance-event-0d59937288b749b32"


def test_aws_an_auto_scaling_group_ends_the_instance() -> None:
    with AwsServer() as server, running(AwsSource({AwsSource.url_env: server.url}, QUICK)) as heard:
        server.lifecycle("InService")
        server.wait_for_requests(3, "lifecycle")
        assert heard.notices == []
        server.lifecycle("Terminated")
        assert (heard.wait(1)[0].grade, heard.notices[0].kind) == (Grade.WILL, "preempt")


def test_aws_one_path_that_fails_does_not_silence_the_others() -> None:
    server = AwsServer()
    server.fault, server.fault_paths = Fault.SERVER_ERROR, "rebalance"
    with server, running(AwsSource({AwsSource.url_env: server.url}, QUICK)) as heard:
        server.wait_for_requests(3, "rebalance")
        server.spot()
        heard.wait(1)


def test_gcp_a_change_is_heard_while_the_request_is_held() -> None:
    pace = Pace(long_poll_s=DEADLINE_S)
    server = GcpServer()
    server.holds_s = DEADLINE_S
    with server, running(GcpSource({GcpSource.url_env: server.url}, pace, has_gpu=True)) as heard:
        server.wait_for_requests(1, "preempted")
        server.wait_until(
            lambda: any(r.query.get("last_etag") != "0" for r in server.requests("preempted")), "a held request"
        )
        server.change(preempted="TRUE")
        heard.wait(1)
    asked = server.requests("preempted")[-1]
    assert asked.query["wait_for_change"] == "true" and asked.headers["metadata-flavor"] == "Google"


@pytest.mark.parametrize(("has_gpu", "lead_s", "grade"), [(True, 3600.0, Grade.MAY), (False, 60.0, Grade.WILL)])
def test_gcp_maintenance_that_ends_the_vm(has_gpu: bool, lead_s: float, grade: Grade) -> None:
    with GcpServer() as server:
        source = GcpSource({GcpSource.url_env: server.url}, HASTY, has_gpu=has_gpu)
        with running(source) as heard:
            server.change(maintenance="TERMINATE_ON_HOST_MAINTENANCE")
            (notice,) = heard.wait(1)
            server.change(maintenance="NONE")
            assert heard.wait(2)[1].withdrawn
    assert (notice.kind, notice.grade, notice.seconds_left) == ("maintenance", grade, about(lead_s))


def test_gcp_a_migration_is_a_pause_and_no_end() -> None:
    with GcpServer() as server, running(GcpSource({GcpSource.url_env: server.url}, QUICK, has_gpu=False)) as heard:
        server.change(maintenance="MIGRATE_ON_HOST_MAINTENANCE")
        assert heard.wait(1)[0].grade is Grade.MAY


def test_gcp_a_longer_notice_is_taken_from_the_environment() -> None:
    with GcpServer() as server:
        environ = {GcpSource.url_env: server.url, "SPOTRUN_GCP_NOTICE_S": "120"}
        with running(GcpSource(environ, QUICK)) as heard:
            server.change(preempted="TRUE")
            assert heard.wait(1)[0].seconds_left == about(120.0)


def test_azure_events_of_other_vms_are_not_ours() -> None:
    with AzureServer("WestNO_0") as server, running(AzureSource({AzureSource.url_env: server.url}, QUICK)) as heard:
        server.event("Preempt", resources=("WestNO_1",), id="theirs")
        server.wait_for_requests(3, "scheduledevents")
        server.event("Preempt", resources=("WestNO_1", "westno_0"), id="both")
        assert heard.wait(1)[0].id == "both"
        assert len(heard.notices) == 1


def test_azure_an_event_is_approved_when_the_state_is_safe_and_not_before() -> None:
    with AzureServer() as server:
        source = AzureSource({AzureSource.url_env: server.url}, QUICK)
        with running(source) as heard:
            server.event("Preempt", id="mine")
            (notice,) = heard.wait(1)
            server.wait_for_requests(3, "scheduledevents")
            assert server.approved == []
            source.safe_to_go(notice)
            assert server.approved == ["mine"]


def test_azure_an_event_that_others_share_is_not_approved_for_them() -> None:
    with AzureServer() as server:
        source = AzureSource({AzureSource.url_env: server.url}, QUICK)
        with running(source) as heard:
            server.event("Redeploy", resources=("WestNO_0", "WestNO_1"))
            source.safe_to_go(heard.wait(1)[0])
    assert server.approved == []


def test_azure_an_approval_that_fails_is_survived() -> None:
    with AzureServer() as server:
        source = AzureSource({AzureSource.url_env: server.url}, HASTY)
        with running(source) as heard:
            server.event("Preempt")
            (notice,) = heard.wait(1)
            for fault in (Fault.SERVER_ERROR, Fault.HANG):
                server.change(fault=fault)
                source.safe_to_go(notice)
    source.safe_to_go(notice)  # refused: the server is gone
    assert server.approved == []


@pytest.mark.parametrize(
    ("what", "in_s", "grade", "kind"),
    [
        ("Preempt", 30.0, Grade.WILL, "preempt"),
        ("Terminate", 900.0, Grade.WILL, "preempt"),
        ("Reboot", 900.0, Grade.MAY, "maintenance"),
        ("Reboot", 300.0, Grade.WILL, "maintenance"),
        ("Redeploy", 500.0, Grade.WILL, "maintenance"),
        ("Freeze", 300.0, Grade.MAY, "maintenance"),
    ],
)
def test_azure_what_an_event_means(what: str, in_s: float, grade: Grade, kind: str) -> None:
    with AzureServer() as server, running(AzureSource({AzureSource.url_env: server.url}, QUICK)) as heard:
        server.event(what, in_s, duration_s=0, id="without effect")
        server.event(what, in_s)
        (notice,) = heard.wait(1)
        assert (notice.grade, notice.kind, notice.seconds_left) == (grade, kind, about(in_s))
        assert notice.id != "without effect"


def test_azure_an_event_that_has_started_leaves_no_time() -> None:
    with AzureServer() as server, running(AzureSource({AzureSource.url_env: server.url}, QUICK)) as heard:
        server.event("Reboot", status="Started")  # so comes the failure of a host
        assert (heard.wait(1)[0].seconds_left, heard.notices[0].grade) == (0.0, Grade.WILL)


def test_azure_the_first_answer_may_take_its_time() -> None:
    server = AzureServer()
    server.fault, server.fault_paths = Fault.HANG, "scheduledevents"
    with server, running(AzureSource({AzureSource.url_env: server.url}, HASTY, first_s=DEADLINE_S)):
        server.wait_for_requests(1, "scheduledevents")
        time.sleep(3 * HASTY.timeout_s)  # longer than any other request may take
        assert len(server.requests("scheduledevents")) == 1


def test_alibaba_in_hardened_mode_is_asked_with_a_token() -> None:
    with AlibabaServer() as server, running(AlibabaSource({AlibabaSource.url_env: server.url}, QUICK)) as heard:
        server.spot(300.0)
        assert heard.wait(1)[0].seconds_left == about(300.0)
        assert server.requests("termination-time")[-1].headers["x-aliyun-ecs-metadata-token"]


def test_alibaba_in_normal_mode_needs_none() -> None:
    server = AlibabaServer()
    server.needs_token, server.refuses_token = False, 404
    server.spot(300.0)
    with server, running(AlibabaSource({AlibabaSource.url_env: server.url}, QUICK)) as heard:
        heard.wait(1)
