"""Whom the review page answers: names of this machine, its own page, and who brings the token."""

import pytest

from .conftest import FIRST, decision, lines

pytest.importorskip("starlette", reason="the extra [review] is not installed")


@pytest.mark.parametrize("host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "10.0.0.7", "", "[::"])
def test_a_host_that_is_not_this_machine_is_refused(visitor, host):
    for path in ("/", "/api/queue", "/static/review.js"):
        assert visitor.get(path, Host=host or " ").status in (400, 421)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:9", "LOCALHOST", "[::1]:8765"])
def test_this_machine_may_be_called_by_its_names(visitor, host):
    assert visitor.get("/", Host=host).status == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"}, {"Origin": "null"}, {"Origin": "http://127.0.0.1:1"},
        {"Sec_Fetch_Site": "cross-site"}, {"Sec_Fetch_Site": "same-site"},
        {"Content_Type": "text/plain"}, {"Content_Type": "application/x-www-form-urlencoded"},
    ],
)  # fmt: skip
def test_other_sites_write_nothing(visitor, drawn, headers):
    answer = visitor.post("/api/decide", decision(drawn, decision="reject"), **headers)
    assert answer.status == 403
    assert lines(drawn) == []
    own = {"Origin": f"http://127.0.0.1:{visitor.port}", "Sec_Fetch_Site": "same-origin"}
    assert visitor.post("/api/decide", decision(drawn, decision="reject"), **own).status == 200


def test_other_sites_see_nothing_but_may_link_to_the_page(visitor):
    assert visitor.get(f"/image?id={FIRST}", Sec_Fetch_Site="cross-site", Sec_Fetch_Mode="no-cors").status == 403
    link = {"Sec_Fetch_Site": "cross-site", "Sec_Fetch_Mode": "navigate", "Sec_Fetch_Dest": "document"}
    assert visitor.get("/", **link).status == 200
    assert visitor.get("/", **(link | {"Sec_Fetch_Dest": "iframe"})).status == 403
    assert visitor.ask("DELETE", "/api/decide").status == 403


def test_another_address_asks_for_a_token(drawn, served):
    with served(drawn.path, host="0.0.0.0") as visitor:
        assert "token=" in visitor.url
        token = visitor.url.partition("token=")[2]
        assert visitor.get("/").status == 403
        assert visitor.get("/?token=wrong").status == 403
        assert visitor.get(f"/api/queue?token={token[:-1]}").status == 403
        answer = visitor.get(f"/?token={token}")
        assert (answer.status, answer.headers["location"]) == (303, "/")
        cookie = answer.headers["set-cookie"].partition(";")[0]
        assert "HttpOnly" in answer.headers["set-cookie"]
        assert visitor.get("/", Cookie=cookie).status == 200
        assert visitor.post("/api/decide", decision(drawn, decision="accept"), Cookie=cookie).status == 200
        assert visitor.post("/api/decide", decision(drawn, decision="reject")).status == 403
        assert visitor.get("/", Cookie=cookie, Host="evil.example").status == 421
        assert visitor.get("/", Cookie=cookie, Host="192.168.1.7:8765").status == 200
    assert [line["decision"] for line in lines(drawn)] == ["accept"]
