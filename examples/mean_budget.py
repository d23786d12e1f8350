"""PPO of Stable-Baselines3 whose mean cost meets the budget: dual ascent on the environment's cost coefficient."""

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.utils import LinearSchedule

import dfs_env  # noqa: F401  registers the environments
from agents.evaluation import evaluate
from agents.sb3 import SB3Policy, SB3VecEnv


class MeanBudget(BaseCallback):
    """Raises `cost_coef` while the mean cost of the episodes is above the budget, and lowers it while it is below."""

    def __init__(self, budget: float, lr: float = 0.1) -> None:
        super().__init__()
        self.budget, self.lr, self.costs = budget, lr, []

    def _on_step(self) -> bool:
        self.costs += [info["spent"] for info in self.locals["infos"] if "episode" in info]
        return True

    def _on_rollout_end(self) -> None:
        excess = np.clip(np.mean(self.costs) / self.budget - 1, -1, 1)
        cost_coef = self.training_env.get_attr("cost_coef")[0] * np.exp(self.lr * excess)
        self.training_env.set_attr("cost_coef", float(cost_coef))
        self.costs.clear()


def main(budget: float = 0.04, num_images: int = 24_000, seed: int = 0) -> float:
    """Train, print accuracy and mean cost on test images, and return the mean cost."""
    torch.set_num_threads(1)
    env = gym.make_vec("DFS/Digits-v0", num_envs=128, budget=budget, autoreset_mode="SameStep")
    steps = {"n_steps": 6, "batch_size": 256, "n_epochs": 4, "gamma": 1.0}  # rollouts of one episode: 6 blocks
    rate = LinearSchedule(1e-3, 0.0, 1.0)
    model = PPO("MlpPolicy", SB3VecEnv(env), learning_rate=rate, seed=seed, device="cpu", **steps)
    model.learn(6 * num_images, callback=MeanBudget(budget))
    task = env.unwrapped.task
    found = evaluate(SB3Policy(model, task.mdp), task, "test", budget)
    print(f"accuracy {found.accuracy:.3f} at mean cost {found.cost:.4f} of a budget of {budget}")
    return found.cost


if __name__ == "__main__":
    main()
