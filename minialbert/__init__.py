"""Small recursive encoders distilled from full-size ones.

Nothing heavy is imported until it is used. Transformers' Auto classes know the student from the moment that both this
package and they are imported, in either order.
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from importlib.machinery import ModuleSpec
    from types import ModuleType

    from minialbert.data.convert_data import convert_data as convert_data
    from minialbert.data.prepare import prepare as prepare
    from minialbert.deploy.export import export as export
    from minialbert.deploy.trim import trim as trim
    from minialbert.method.configuration_minialbert import MiniAlbertConfig as MiniAlbertConfig
    from minialbert.method.distill import distill as distill
    from minialbert.method.losses import layer_map as layer_map
    from minialbert.method.modeling_minialbert import MiniAlbertForMaskedLM as MiniAlbertForMaskedLM
    from minialbert.method.modeling_minialbert import (
        MiniAlbertForQuestionAnswering as MiniAlbertForQuestionAnswering,
    )
    from minialbert.method.modeling_minialbert import (
        MiniAlbertForSequenceClassification as MiniAlbertForSequenceClassification,
    )
    from minialbert.method.modeling_minialbert import (
        MiniAlbertForTokenClassification as MiniAlbertForTokenClassification,
    )
    from minialbert.method.modeling_minialbert import MiniAlbertModel as MiniAlbertModel
    from minialbert.method.objective import DistillationObjective as DistillationObjective
    from minialbert.method.trainer import DistillationTrainer as DistillationTrainer
    from minialbert.report import report as report
    from minialbert.report.render import render as render
    from minialbert.runs.results import ModelResult as ModelResult
    from minialbert.runs.results import Result as Result
    from minialbert.tasks.calibrate import calibrate as calibrate
    from minialbert.tasks.embed import embed as embed
    from minialbert.tasks.evaluate import evaluate as evaluate
    from minialbert.tasks.finetune import finetune as finetune
    from minialbert.tasks.predict import load as load
    from minialbert.tasks.predict import predict as predict

__version__ = "0.2.0"

_MODELING = "minialbert.method.modeling_minialbert"
# Where each public name lives.
_PLACES = {
    "DistillationObjective": "minialbert.method.objective",
    "DistillationTrainer": "minialbert.method.trainer",
    "MiniAlbertConfig": "minialbert.method.configuration_minialbert",
    "MiniAlbertForMaskedLM": _MODELING,
    "MiniAlbertForQuestionAnswering": _MODELING,
    "MiniAlbertForSequenceClassification": _MODELING,
    "MiniAlbertForTokenClassification": _MODELING,
    "MiniAlbertModel": _MODELING,
    "ModelResult": "minialbert.runs.results",
    "Result": "minialbert.runs.results",
    "calibrate": "minialbert.tasks.calibrate",
    "convert_data": "minialbert.data.convert_data",
    "distill": "minialbert.method.distill",
    "embed": "minialbert.tasks.embed",
    "evaluate": "minialbert.tasks.evaluate",
    "export": "minialbert.deploy.export",
    "finetune": "minialbert.tasks.finetune",
    "layer_map": "minialbert.method.losses",
    "load": "minialbert.tasks.predict",
    "predict": "minialbert.tasks.predict",
    "prepare": "minialbert.data.prepare",
    "render": "minialbert.report.render",
    "trim": "minialbert.deploy.trim",
}

__all__ = ["__version__", "report", *_PLACES]


def __getattr__(name: str) -> Any:
    if name == "report":  # the room is the verb too
        return import_module("minialbert.report")
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(_PLACES[name]), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Registration:
    """Tells Transformers' Auto classes of the student when, and only when, somebody imports them.

    Importing them here would take seconds of every command, `--help` included. Some modules of Transformers import the
    Auto classes while they are being imported themselves, and the student needs these: it is registered once the
    outermost of them is complete.
    """

    _CONFIG_AUTO = "transformers.models.auto.configuration_auto"
    _MODEL_AUTO = "transformers.models.auto.modeling_auto"

    def __init__(self) -> None:
        self._waiting = {self._CONFIG_AUTO, self._MODEL_AUTO, "transformers.modeling_layers", _MODELING}
        self._loaders: dict[str, Any] = {}
        self._running = 0

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        """Return the module's own spec with this as its loader; None for all that is not waited for."""
        if fullname not in self._waiting:
            return None
        self._waiting.remove(fullname)  # the question below comes back here
        spec = find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        self._loaders[fullname], spec.loader = spec.loader, self  # type: ignore[assignment]  # a loader by its methods
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        created: ModuleType | None = self._loaders[spec.name].create_module(spec)
        return created

    def exec_module(self, module: ModuleType) -> None:
        """Run the module as its own loader does, then register the student if it is complete by now."""
        assert module.__spec__ is not None
        loader = module.__loader__ = module.__spec__.loader = self._loaders.pop(module.__name__)
        self._running += 1
        try:
            loader.exec_module(module)
        finally:
            self._running -= 1
        self.register()

    def register(self) -> None:
        if self._running:
            return
        if auto := sys.modules.get(self._CONFIG_AUTO):
            from minialbert.method.configuration_minialbert import MiniAlbertConfig

            auto.AutoConfig.register("minialbert", MiniAlbertConfig, exist_ok=True)
        if auto := sys.modules.get(self._MODEL_AUTO):
            from minialbert.method import modeling_minialbert as ours
            from minialbert.method.configuration_minialbert import MiniAlbertConfig

            auto.AutoModel.register(MiniAlbertConfig, ours.MiniAlbertModel, exist_ok=True)
            for head in ("MaskedLM", "SequenceClassification", "TokenClassification", "QuestionAnswering"):
                model = getattr(ours, f"MiniAlbertFor{head}")
                getattr(auto, f"AutoModelFor{head}").register(MiniAlbertConfig, model, exist_ok=True)


# tqdm says this of every notebook without ipywidgets, whoever imports it; nothing of ours needs them.
warnings.filterwarnings("ignore", message="IProgress not found")
_registration = _Registration()
sys.meta_path.insert(0, _registration)
_registration.register()
