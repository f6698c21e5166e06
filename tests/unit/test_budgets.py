import pytest

from stockstream.budgets import Limits
from stockstream.errors import SettingsError
from stockstream.settings import load_settings


@pytest.mark.parametrize(
    ("text", "limits"), [("1/s,25/d", Limits(1, None, 25)), (" 60 / min ", Limits(None, 60, None)), ("2000/d,60/min,1/s", Limits(1, 60, 2000))]
)
def test_a_budget_is_read_and_written(text: str, limits: Limits) -> None:
    assert Limits.parse(text) == limits and Limits.parse(str(limits)) == limits


@pytest.mark.parametrize("text", ["", "25", "25/day", "1/s,", "-1/d", "0/d", "1/s,2/s", "1.5/s", "1/h", "9999999999/d"])
def test_another_text_is_refused_with_one_line_that_names_the_setting(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_ALPHA_VANTAGE_BUDGET", text)
    with pytest.raises(SettingsError, match=r"^STOCKSTREAM_ALPHA_VANTAGE_BUDGET: [^\n]+$"):
        load_settings()


@pytest.mark.parametrize("url", ["ftp://host/x", "host", "https://host/query?apikey=SECRETKEY", "https://me:SECRETKEY@host/query"])
def test_an_address_with_a_key_in_it_is_refused_and_not_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_ALPHA_VANTAGE_URL", url)
    with pytest.raises(SettingsError, match=r"^STOCKSTREAM_ALPHA_VANTAGE_URL: [^\n]+$") as caught:
        load_settings()
    assert "SECRETKEY" not in str(caught.value)


def test_the_key_is_stripped_and_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOCKSTREAM_ALPHA_VANTAGE_KEY", " SECRETKEY\n")
    settings = load_settings()
    assert settings.alpha_vantage_key.get_secret_value() == "SECRETKEY" and "SECRETKEY" not in repr(settings)
