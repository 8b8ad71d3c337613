"""A small judge of handwritten digits, trained on the real ones, of nothing but plain PyTorch."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def train_digit_classifier(images: Tensor, labels: Tensor, epochs: int = 12) -> nn.Module:
    """A classifier of digits [N, 1, 28, 28] in [-1, 1], trained with shifts of up to 2 pixels."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(64 * 49, 128), nn.ReLU(), nn.Dropout(0.4), nn.Linear(128, 10),
    )  # fmt: skip
    batch_size = 100
    steps = epochs * (len(images) // batch_size)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=1e-2)
    rate = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=4e-3, total_steps=steps)
    padded = F.pad(images, (2, 2, 2, 2), value=-1.0)
    for _ in range(steps):
        index = torch.randint(len(images), (batch_size,))
        top, left = torch.randint(5, (2,)).tolist()
        batch = padded[index, :, top : top + 28, left : left + 28]
        loss = F.cross_entropy(model(batch), labels[index], label_smoothing=0.05)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        rate.step()
    return model.eval()


@torch.no_grad()
def classify(model: nn.Module, images: Tensor) -> Tensor:
    return torch.cat([model(part).argmax(1) for part in images.split(250)])
