import torch

torch.set_num_threads(1)  # the same sums in every run
