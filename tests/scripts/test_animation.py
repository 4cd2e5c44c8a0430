"""The animation: what frames share is drawn once, and each part is shown when its frames are."""

import re

from scripts.animation import Film, printed


def test_a_film_draws_what_frames_share_once():
    film = Film()
    for answer, seconds in (("first", 1.0), ("second", 3.0)):
        film.add(printed("ttscope x", [answer, "in both"]), f"caption {answer}", seconds)
    picture = film.svg()
    assert picture.count("in&#160;both") == 1
    groups = re.findall(r'<g class="(f\d+)"><text[^>]*>([^<]*)', picture)
    shown = {text: name for name, text in groups}
    for text, frames in (("first", "0%{opacity:1}25%{opacity:0}"),
                         ("second", "0%{opacity:0}25%{opacity:1}")):  # fmt: skip
        assert f"@keyframes {shown[text]}{{{frames}}}" in picture
        assert f"caption {text}" in picture
