"""What settings offer to those who fetch."""

from __future__ import annotations

from shardgit.protocol.upload_pack import Offer
from shardgit.service.offer import offer_of
from shardgit.service.setting_keys import changed
from shardgit.service.settings import DEFAULTS


def test_by_default_all_is_offered() -> None:
    assert offer_of(DEFAULTS, session_id=b"s") == Offer(session_id=b"s")


def test_settings_take_away_and_name_promisors() -> None:
    settings = changed(
        DEFAULTS,
        {
            "fetch.allow_filter": False,
            "fetch.allow_ref_in_want": False,
            "fetch.allow_sideband_all": False,
            "fetch.advertise_session_id": False,
            "fetch.denied_filters": ["tree"],
            "fetch.tree_depth_max": 5,
            "fetch.unborn": "allow",
            "fetch.promisors": [
                {"name": "a;b", "url": "https://x.example/a,b"},
                {"name": "c", "url": "file:///c", "filter": "blob:none"},
            ],
        },
    )
    assert offer_of(settings, session_id=b"s") == Offer(
        filters=False,
        denied=frozenset({"tree"}),
        tree_depth_max=5,
        unborn="allow",
        ref_in_want=False,
        sideband_all=False,
        promisors=b"name=a%3Bb,url=https://x.example/a%2Cb"
        b";name=c,url=file:///c,partialCloneFilter=blob:none",
    )
