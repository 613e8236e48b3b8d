"""A pytest plugin, ``-p tests.other_package``: tests get ``pytorch_lightning`` in the place of ``lightning.pytorch``.

The library is imported before, and keeps the classes of ``lightning.pytorch``.
"""

import importlib
import pkgutil
import sys
from types import ModuleType

import lightning.pytorch.cli
import lightning.pytorch.demos.boring_classes
import pytorch_lightning

import lightning_stable

for _module in pkgutil.walk_packages(lightning_stable.__path__, "lightning_stable."):
    if not _module.name.endswith("__main__"):
        importlib.import_module(_module.name)
for _name in [name for name in sys.modules if f"{name}.".startswith("lightning.pytorch.")]:
    sys.modules[_name] = importlib.import_module(_name.replace("lightning.pytorch", "pytorch_lightning"))
_whole = ModuleType("lightning")
vars(_whole).update(vars(pytorch_lightning), pytorch=pytorch_lightning, fabric=lightning.fabric)
sys.modules["lightning"] = _whole
