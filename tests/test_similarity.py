"""SSIM and LPIPS: what is known to be worse ranks below what is known to be better, and what is missing is said."""

import sys

import pytest
import torch

from festina import FestinaError
from festina.metrics.similarity import CHUNK, SMALLEST_LPIPS, SMALLEST_SSIM, lpips_measure, ssim_measure


@pytest.fixture(scope="module")
def ssim():
    return ssim_measure()


@pytest.fixture(scope="module")
def pictures():
    """Smooth pictures: noise, blurred."""
    noise = torch.rand(3, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.avg_pool2d(noise, 9, stride=1)


def noisy(pictures, strength):
    return pictures + strength * torch.randn(pictures.shape, generator=torch.Generator().manual_seed(1))


class TestSsim:
    def test_equal_pictures_have_one(self, ssim, pictures):
        assert ssim(pictures, pictures) == pytest.approx(1)

    def test_more_noise_is_further_off(self, ssim, pictures):
        found = [ssim(noisy(pictures, strength), pictures) for strength in (0.01, 0.05, 0.2)]
        assert 1 > found[0] > found[1] > found[2] > -1

    def test_structure_counts_more_than_brightness(self, ssim, pictures):
        """With the same mean squared error, a shift of all pixels is less harm than noise."""
        assert ssim(pictures + 0.05, pictures) > ssim(noisy(pictures, 0.05), pictures)

    def test_closed_form_of_flat_pictures(self, ssim):
        """Without structure only the luminance term is left: (2 a b + C1) / (a^2 + b^2 + C1) with C1 = 0.01^2."""
        one, other = torch.full((1, 3, 16, 16), 0.2), torch.full((1, 3, 16, 16), 0.6)
        assert ssim(one, other) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4), abs=1e-4)

    def test_is_a_mean_over_pictures_however_many(self, ssim, pictures):
        many = pictures.repeat(CHUNK, 1, 1, 1)
        other = noisy(many, 0.1)
        each = [ssim(other[place : place + 1], many[place : place + 1]) for place in range(len(many))]
        assert len(many) > 2 * CHUNK
        assert ssim(other, many) == pytest.approx(sum(each) / len(each))

    def test_frames_of_a_video_are_pictures(self, ssim, pictures):
        other = noisy(pictures, 0.1)
        assert ssim(other[None], pictures[None]) == pytest.approx(ssim(other, pictures))

    def test_what_it_cannot_compare_is_refused(self, ssim, pictures):
        with pytest.raises(FestinaError, match="of one shape"):
            ssim(pictures[:2], pictures)
        small = torch.zeros(1, 3, SMALLEST_SSIM, SMALLEST_SSIM)
        assert ssim(small, small) == pytest.approx(1)
        with pytest.raises(FestinaError, match="SSIM wants pictures of 6 pixels or more each way; found 6 x 5"):
            ssim(small[..., :-1], small[..., :-1])

    def test_without_its_library_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchmetrics.functional.image", None)
        with pytest.raises(FestinaError, match=r"pip install festina\[metrics\]"):
            ssim_measure()


class TestLpips:
    def test_without_its_library_it_says_what_to_install(self, monkeypatch):
        monkeypatch.setitem(sys.modules, "torchvision", None)
        with pytest.raises(FestinaError, match=r"pip install festina\[lpips\]"):
            lpips_measure()

    def test_with_weights_noise_is_further_off(self, monkeypatch, tmp_path, pictures):
        """On AlexNet with random weights, which stands where torchvision keeps the trained one."""
        torchvision = pytest.importorskip("torchvision", reason="LPIPS is optional", exc_type=ImportError)
        monkeypatch.setenv("TORCH_HOME", str(tmp_path))
        monkeypatch.setattr(torch.hub, "download_url_to_file", _no_network)
        with pytest.raises(FestinaError, match="weights of AlexNet"):
            lpips_measure()
        torch.manual_seed(0)
        file = torchvision.models.AlexNet_Weights.DEFAULT.url.rpartition("/")[2]
        (tmp_path / "hub" / "checkpoints").mkdir(parents=True, exist_ok=True)
        torch.save(torchvision.models.alexnet(weights=None).state_dict(), tmp_path / "hub" / "checkpoints" / file)
        lpips = lpips_measure()
        assert pictures.shape[-1] >= SMALLEST_LPIPS
        assert lpips(pictures, pictures) == 0
        found = [lpips(noisy(pictures, strength), pictures) for strength in (0.02, 0.1, 0.3)]
        assert 0 < found[0] < found[1] < found[2]
        with pytest.raises(FestinaError, match="LPIPS wants pictures of 31 pixels"):
            lpips(pictures[..., :30], pictures[..., :30])


def _no_network(*_, **__):
    raise OSError("no network")
