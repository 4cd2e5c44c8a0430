"""The keys of the Run screen, and what it asks for."""

from __future__ import annotations

from textual.binding import Binding, BindingType

QUESTIONS = {
    "goto": "a problem as 137, a step as s48213, a time as 3:32 or 12.5s",
    "replay": "changes: engine.max_num_seqs=8 policy.n=4; empty replays it as recorded",
}
KEYS: list[BindingType] = [
    Binding("space", "play", "play", id="run.play"),
    Binding("left", "move(-1)", "time", key_display="← →", id="run.earlier"),
    Binding("right", "move(1)", "later", id="run.later", show=False),
    Binding("shift+left", "move(-10)", "ten columns earlier", id="run.much_earlier", show=False),
    Binding("shift+right", "move(10)", "ten columns later", id="run.much_later", show=False),
    Binding("home", "move(-1000000)", "start", id="run.start", show=False),
    Binding("end", "move(1000000)", "end", id="run.end", show=False),
    Binding("comma", "step(-1)", "a step back", id="run.back", show=False),
    Binding("full_stop", "step(1)", "a step on", id="run.on", show=False),
    Binding("less_than_sign", "speed(0.5)", "slower", id="run.slower", show=False),
    Binding("greater_than_sign", "speed(2)", "faster", id="run.faster", show=False),
    Binding("plus,equals_sign", "zoom(0.5)", "zoom in", id="run.zoom_in", show=False),
    Binding("minus", "zoom(2)", "zoom out", id="run.zoom_out", show=False),
    Binding("z", "zoom_to('problem')", "zoom to the problem", id="run.zoom_problem", show=False),
    Binding("0", "zoom_to('whole')", "the whole run", id="run.zoom_whole", show=False),
    Binding("left_square_bracket", "problem(-1)", "problem", key_display="[ ]", id="run.previous"),
    Binding("right_square_bracket", "problem(1)", "next problem", id="run.next", show=False),
    Binding("g", "ask('goto')", "go to", id="run.goto"),
    Binding("w", "worst", "slowest problem", id="run.slowest", show=False),
    Binding("r", "rule", "rule", id="run.rule"),
    Binding("k", "page", "more", id="run.page", tooltip="kernels, policies, the replay"),
    Binding("v", "ask('replay')", "replay", id="run.replay"),
    Binding("escape", "leave", "leave the field", show=False),
]
