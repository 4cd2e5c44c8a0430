"""Pictures and pages that are shown to others name no folder of the machine that made them."""

from scripts.without_paths import without_paths


def test_a_page():
    page = "<pre>/srv/me/.venv/bin/python --model /srv/me/models/s</pre> .venv/bin/ttscope tui"
    assert without_paths(page, "/srv/me") == (
        "<pre>~/ttscope/.venv/bin/python --model ~/ttscope/models/s</pre> ttscope tui"
    )


def test_a_text_of_a_picture_keeps_its_width():
    line = "/home/someone/here/.venv/bin/python&#160;\\"
    picture = f'<svg><text textLength="9">{line}</text><text>b</text></svg>'
    plain = without_paths(picture, "/home/someone/here")
    spaces = "&#160;" * (len("/home/someone/here") - len("~/ttscope"))
    assert plain == picture.replace(line, "~/ttscope/.venv/bin/python&#160;\\" + spaces)
