"""Pictures of processes, of one Predict, of an update and of the state folder, from the tables in the code."""

import configparser
import itertools
import math

from common import paths
from dev.documents.blocks import ROOT
from dev.documents.drawing import Box, Picture
from dev.documents.state_reference import ENTRIES
from updater.core.record import Stage
from updater.stages.machine import TRANSITIONS

# The way of one Predict: what is done, and the file that does it.
STEPS = (
    ("request id, deadline", "inference/server/api/interceptors.py"),
    ("fields are checked", "inference/server/api/entailment.py"),
    ("admission: in time?", "inference/server/scheduling/admission.py"),
    ("route: which slot", "inference/server/model/route.py"),
    ("lease of the slot", "inference/server/model/slot.py"),
    ("fair queue", "inference/server/scheduling/fair_queue.py"),
    ("dispatch", "inference/server/scheduling/dispatcher.py"),
    ("frames", "inference/wire.py"),
    ("prepare: decode, tokenise", "inference/runner/prepare.py"),
    ("device call", "inference/runner/worker.py"),
    ("answer, or run again", "inference/server/model/requests.py"),
)
PLACES = {
    Stage.IDLE: (80, 130),
    Stage.STAGING: (230, 130),
    Stage.VERIFYING: (380, 130),
    Stage.GATING: (530, 130),
    Stage.SHADOWING: (605, 235),
    Stage.ACTIVATING: (680, 130),
    Stage.OBSERVING: (830, 130),
    Stage.COMMITTING: (830, 235),
    Stage.ROLLING_BACK: (380, 370),
    Stage.HELD: (80, 370),
}
MEANINGS = {
    Stage.IDLE: "polls the hub",
    Stage.STAGING: "downloads",
    Stage.VERIFYING: "checks, converts",
    Stage.GATING: "golden set",
    Stage.SHADOWING: "answers copies",
    Stage.ACTIVATING: "swaps",
    Stage.OBSERVING: "on trial",
    Stage.COMMITTING: "writes the pointer",
    Stage.ROLLING_BACK: "the old one answers",
    Stage.HELD: "waits for a person",
}
_ROW = 34


def read_programs() -> set[str]:
    """The programs of supervisor.conf."""
    parser = configparser.RawConfigParser()
    parser.read(ROOT / "supervisor.conf")
    sections = (name.partition(":") for name in parser.sections())
    return {name for kind, _, name in sections if kind in {"program", "eventlistener"}}


def draw_processes() -> str:
    """Who starts whom, and who speaks with whom."""
    picture = Picture("Processes and the sockets between them", 960, 430)
    picture.add_group(210, 20, 540, 390, "supervisord, started by hotslot serve or deploy/run-stack")
    boxes = {
        "server": Box(480, 110, 180, 56),
        "updater": Box(480, 330, 150, 56),
        "watchdog": Box(310, 215, 150, 44),
        "console": Box(665, 330, 130, 56),
    }
    if set(boxes) != read_programs():
        raise ValueError(f"supervisor.conf has {sorted(read_programs())}")
    picture.add_box(boxes["server"], "server", ("gRPC, queue, health", "no torch"), "good")
    picture.add_box(boxes["updater"], "updater", ("watches the hub,", "decides"))
    picture.add_box(boxes["watchdog"], "watchdog", ("liveness, restarts",))
    picture.add_box(boxes["console"], "console", ("web pages, optional",))
    a = picture.add_box(Box(660, 75, 140, 50), "runner a", ("one model, one device",), "good")
    b = picture.add_box(Box(660, 175, 140, 64), "runner b", ("standby, candidate,", "or the previous model"), "warm")
    clients = picture.add_box(Box(95, 110, 130, 50), "clients", ("Python, Go, Java, HTTP",))
    hub = picture.add_box(Box(95, 345, 130, 44), "hub", ("ModelScope or a folder",))
    operators = picture.add_box(Box(850, 330, 150, 44), "operators", ("hotslot updates …",))
    prometheus = picture.add_box(Box(95, 215, 130, 44), "Prometheus", ("alerts",))
    picture.add_arrow(clients, boxes["server"], "gRPC :50051", bend=30)
    picture.add_arrow(boxes["server"], a, both=True)
    picture.add_arrow(boxes["server"], b, "frames", both=True)
    picture.add_arrow(boxes["updater"], boxes["server"], f"{paths.RUN_FOLDER}/{paths.CONTROL_SOCKET}", "warm")
    picture.add_arrow(boxes["watchdog"], boxes["server"], paths.LIVENESS, bend=20)
    picture.add_arrow(boxes["console"], boxes["updater"])
    picture.add_arrow(operators, boxes["updater"], f"{paths.RUN_FOLDER}/{paths.UPDATES_SOCKET}", bend=110)
    picture.add_arrow(hub, boxes["updater"], "revisions")
    picture.add_arrow(prometheus, boxes["server"], "/metrics")
    return picture.render()


def draw_predict() -> str:
    """The way of one Predict through server and runner."""
    picture = Picture("The way of one Predict through the processes", 960, 330)
    columns, width, height = 4, 205, 62
    places = [_find_place(number, columns) for number in range(len(STEPS))]
    boxes = []
    for (title, file), (x, y) in zip(STEPS, places, strict=True):
        if not (ROOT / file).exists():
            raise ValueError(f"{file} is gone")
        kind = "warm" if "/runner/" in file else "good" if "/server/" in file else ""
        boxes.append(picture.add_box(Box(x, y, width, height), title, (file.removeprefix("inference/"),), kind))
    for before, after in itertools.pairwise(boxes):
        picture.add_arrow(before, after)
    picture.add_text(845, 262, "green: the server's process")
    picture.add_text(845, 280, "amber: the runner's")
    return picture.render()


def _find_place(number: int, columns: int) -> tuple[int, int]:
    """Rows that are read from left to right, then back."""
    row, column = divmod(number, columns)
    return 120 + (columns - 1 - column if row % 2 else column) * 240, 62 + row * 100


def draw_update() -> str:
    """The stages of an update with the transitions that are possible."""
    picture = Picture("The stages of an update", 960, 430)
    boxes = {stage: Box(*place, 122, 48) for stage, place in PLACES.items()}
    for stage, box in boxes.items():
        kind = {Stage.HELD: "warm", Stage.ROLLING_BACK: "bad", Stage.OBSERVING: "good"}.get(stage, "")
        picture.add_box(box, stage, (MEANINGS[stage],), kind)
    for stage in Stage:
        for after in Stage:
            if after in TRANSITIONS[stage]:
                kind = "bad" if after is Stage.ROLLING_BACK else "warm" if Stage.HELD in {stage, after} else ""
                picture.add_arrow(boxes[stage], boxes[after], kind=kind, bend=_find_bend(stage, after))
    picture.add_text(690, 412, "red: taken back · amber: a person decides · what serves is untouched until ACTIVATING")
    return picture.render()


def _find_bend(stage: Stage, after: Stage) -> float:
    """Arrows that pass other stages go above their row; two between the same stages do not cover each other."""
    (x1, y1), (x2, y2) = PLACES[stage], PLACES[after]
    if y1 == y2 and abs(x2 - x1) > 150 and y1 < 200:
        return math.copysign(abs(x2 - x1) / 3, x2 - x1)
    if (stage, after) == (Stage.COMMITTING, Stage.IDLE):
        return -330
    return 12


def draw_state_folder() -> str:
    """Which process writes which file of the state folder."""
    rows = [entry for entry in ENTRIES if entry.name not in {"run", "*.replaced", "hub"}]
    writers = {"server": "good", "updater": "", "watchdog": "warm", "supervisord": "warm"}
    height = 60 + len(rows) * _ROW
    picture = Picture("The files of the state folder, and who writes them", 960, height)
    picture.add_text(150, 30, "written by", "title")
    picture.add_text(400, 30, "file", "title")
    picture.add_text(560, 30, "what it is", "title left")
    for number, entry in enumerate(sorted(rows, key=lambda entry: list(writers).index(entry.writer))):
        y = 60 + number * _ROW
        picture.add_box(Box(400, y, 230, 26), entry.name, (), writers[entry.writer])
        picture.add_text(150, y + 4, entry.writer)
        meaning = entry.meaning.replace("`", "")
        picture.add_text(535, y + 4, meaning if len(meaning) < 72 else f"{meaning[:70]}…", "small left")
    return picture.render()
