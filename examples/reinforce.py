"""REINFORCE in plain torch: an own loop on the vector environment. A Lagrange multiplier holds the mean budget."""

from typing import Any

import gymnasium as gym
import numpy as np
import torch
from torch import nn
from torch.distributions import Categorical

import dfs_env  # noqa: F401  registers the environments
from agents.evaluation import Evaluation, evaluate


class LinearPolicy:
    """A linear gate with what `evaluate` needs: `predict`, and the multiply-accumulates of all decisions together."""

    def __init__(self, observations: int, actions: int, decisions: int) -> None:
        self.gate = nn.Linear(observations, actions)
        self.macs_per_image = decisions * observations * actions

    def predict(
        self, observation: np.ndarray, state: Any = None, episode_start: Any = None, deterministic: bool = False
    ) -> tuple[np.ndarray, Any]:
        """Actions [B] for observations [B, D], and the state, which a gate without memory does not need."""
        with torch.no_grad():
            scores = self.gate(torch.from_numpy(observation))
        return (scores.argmax(1) if deterministic else Categorical(logits=scores).sample()).numpy(), state


def train(env: gym.vector.VectorEnv, budget: float, updates: int, seed: int) -> LinearPolicy:
    """Each update plays one episode in every sub-environment. The reward must not charge cost: the multiplier does."""
    mdp = env.unwrapped.mdp
    torch.manual_seed(seed)
    policy = LinearPolicy(mdp.layout.dim, mdp.num_actions, mdp.num_layers)
    optimizer, multiplier = torch.optim.Adam(policy.gate.parameters(), lr=0.02), 0.5
    for update in range(updates):
        observation, _ = env.reset(seed=None if update else seed)  # without a seed: new images
        log_probabilities, entropies, rewards, costs = [], [], [], []
        for _ in range(mdp.num_layers):  # all images are at the same decision
            choice = Categorical(logits=policy.gate(torch.from_numpy(observation)))
            action = choice.sample()
            observation, reward, _, _, info = env.step(action.numpy())
            log_probabilities.append(choice.log_prob(action))
            entropies.append(choice.entropy())
            rewards.append(reward)
            costs.append(info["cost"])
        charged = torch.from_numpy(np.array(rewards) - multiplier * np.array(costs)).float()  # [L, B]
        returns = charged.flip(0).cumsum(0).flip(0)  # [L, B], from each decision on, undiscounted
        advantages = returns - returns.mean(1, keepdim=True)  # the baseline is the batch's mean at each decision
        reinforce = -(torch.stack(log_probabilities) * advantages).sum(0).mean()
        bonus = 0.05 * (1 - update / updates) * torch.stack(entropies).sum(0).mean()
        optimizer.zero_grad()
        (reinforce - bonus).backward()
        optimizer.step()
        excess = np.clip(np.sum(costs, 0).mean() / budget - 1, -1, 1)
        multiplier *= np.exp(0.05 * excess)  # dual ascent: it rises while the mean cost is above the budget
    return policy


def main(budget: float = 0.05, updates: int = 300, seed: int = 0) -> Evaluation:
    """Train, print accuracy and mean cost on test images, and return the evaluation."""
    torch.set_num_threads(1)
    kwargs = {"budget": budget, "decisions": 3, "reward": "probability"}  # the reward: of the true class
    env = gym.make_vec("DFS/Digits-v0", num_envs=128, autoreset_mode="Disabled", **kwargs)
    found = evaluate(train(env, budget, updates, seed), env.unwrapped.task, "test", budget)
    print(f"accuracy {found.accuracy:.3f} at mean cost {found.cost:.4f} of a budget of {budget}")
    return found


if __name__ == "__main__":
    main()
