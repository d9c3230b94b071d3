"""Adversarial losses on the discriminator's outputs ("logits"), and penalties on its gradients."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class AdversarialLoss:
    """What the discriminator and the generator minimise, as means over a batch of logits.

    Attributes:
        real: of the discriminator, on real images and the label it should give them.
        fake: of the discriminator, on fakes. Without it the loss is one of pairs, each a real image with a fake: the
            other functions take the difference of their logits.
        generator_on_fakes: of the generator.
        probability: that an image is real, after its logit.
    """

    real: Callable[[Tensor, float], Tensor]
    fake: Callable[[Tensor], Tensor] | None
    generator_on_fakes: Callable[[Tensor], Tensor]
    probability: Callable[[Tensor], Tensor] = torch.sigmoid

    def discriminator(self, real: Tensor, fake: Tensor, real_label: float = 1.0) -> Tensor:
        """The discriminator's loss on logits of real images and of fakes, each (n,)."""
        if self.fake is None:
            return self.real(real - fake, real_label)
        return self.real(real, real_label) + self.fake(fake)

    def generator(self, real: Tensor | None, fake: Tensor) -> Tensor:
        """The generator's loss on logits of fakes (n,); those of real images (n,) are needed by a loss of pairs."""
        return self.generator_on_fakes(fake if real is None else fake - real)


def _real_bce(logits: Tensor, label: float) -> Tensor:
    """-E[label log D(x) + (1 - label) log(1 - D(x))]."""
    return (F.softplus(-logits) + (1 - label) * logits).mean()


ADVERSARIAL_LOSSES = {
    # Goodfellow et al. (2014), section 3: the generator maximises log D(G(z)), "non-saturating"
    "bce": AdversarialLoss(
        real=_real_bce,
        fake=lambda logits: F.softplus(logits).mean(),
        generator_on_fakes=lambda logits: F.softplus(-logits).mean(),
    ),
    # the same, equation 1: the generator minimises log(1 - D(G(z)))
    "minimax": AdversarialLoss(
        real=_real_bce,
        fake=lambda logits: F.softplus(logits).mean(),
        generator_on_fakes=lambda logits: -F.softplus(logits).mean(),
    ),
    # Mao et al., "Least squares GANs" (2017), equation 9
    "least-squares": AdversarialLoss(
        real=lambda logits, label: 0.5 * (logits - label).square().mean(),
        fake=lambda logits: 0.5 * logits.square().mean(),
        generator_on_fakes=lambda logits: 0.5 * (logits - 1).square().mean(),
        probability=lambda logits: logits,
    ),
    # Miyato et al., "Spectral normalization" (2018), equations 16 and 17
    "hinge": AdversarialLoss(
        real=lambda logits, label: F.relu(1 - logits).mean(),
        fake=lambda logits: F.relu(1 + logits).mean(),
        generator_on_fakes=lambda logits: -logits.mean(),
    ),
    # Arjovsky et al., "Wasserstein GAN" (2017), equation 2
    "wasserstein": AdversarialLoss(
        real=lambda logits, label: -logits.mean(),
        fake=lambda logits: logits.mean(),
        generator_on_fakes=lambda logits: -logits.mean(),
    ),
    # Huang et al., "The GAN is dead; long live the GAN!" (R3GAN, 2024), equation 2
    "relativistic": AdversarialLoss(
        real=_real_bce,
        fake=None,
        generator_on_fakes=lambda logits: F.softplus(-logits).mean(),
    ),
}


def gradient_norms(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Squared norm of the gradient of each logit by its image, or by its pack of them, to be differentiated again.

    With batch normalisation an image moves the logits of the others too: then it is the gradient of their sum.
    """
    images = images.detach().requires_grad_()
    logits = discriminator(images)
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.flatten(1).square().sum(1).view(len(logits), -1).sum(1)


def zero_centred_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """R1 on real images, R2 on fakes: half the mean squared norm (Mescheder et al., 2018, equation 9)."""
    return 0.5 * gradient_norms(discriminator, images).mean()


def interpolated_penalty(
    discriminator: Callable[[Tensor], Tensor], reals: Tensor, fakes: Tensor, share: Tensor
) -> Tensor:
    """How far from 1 the norm is between a real image and a fake, `share` (n,) of the way (WGAN-GP, equation 3)."""
    between = torch.lerp(reals, fakes, share[:, None, None, None])
    norms = (gradient_norms(discriminator, between) + 1e-12).sqrt()
    return (norms - 1).square().mean()
