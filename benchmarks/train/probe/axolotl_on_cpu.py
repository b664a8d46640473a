"""axolotl has no key for it: a plugin of a user's own that lets its trainer accept a CPU."""

from axolotl.integrations.base import BasePlugin


class OnCpu(BasePlugin):
    def get_training_args(self, cfg):
        return {"use_cpu": True}
