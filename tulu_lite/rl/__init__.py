"""What a step of reinforcement learning is made of: prompts, collected samples, rewards, the learner, its figures."""
