"""Entry points of torch.hub: every network by its name.

model = torch.hub.load("PATH/OF/A/CLONE", "tdn_resnet50", source="local", num_classes=174)
model = torch.hub.load("PATH/OF/A/CLONE", "tdn_resnet50", source="local", weights="hf-hub:user/repo")
"""

from functools import partial, update_wrapper

from tdn_bench.models import create_model, list_models

dependencies = ["torch", "numpy", "av", "pyarrow", "safetensors", "rich", "tyro"]

for _name in list_models():
    globals()[_name] = update_wrapper(partial(create_model, _name), create_model)
