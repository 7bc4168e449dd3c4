"""Personal data in text: e-mail addresses, IP addresses and phone numbers, replaced by placeholders.

The rules would rather miss one than damage a date, a version, a price or an ISBN: what remains of a scrubbed text is
learnt as it stands.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable

# ASCII rules, so that letters of other scripts may touch an address: 邮箱a@b.cn是.
_EMAIL = re.compile(
    r"(?<![\w.%+@-])[\w%+-](?:[\w.%+-]{0,62}[\w%+-])?"
    r"@(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.){1,8}[a-z]{2,24}(?![\w@]|-\w|\.\w)",
    re.ASCII | re.IGNORECASE,
)
# The first character comes before what must not stand before it: so the search goes from digit to digit.
_IPV4 = re.compile(r"\d(?<![\w.-]\d)(?<![^/]/\d)\d{0,2}(?:\.\d{1,3}){3}(?![\w-]|\.\w)", re.ASCII)
# Addresses that can be reached from everywhere begin with 2 or 3: a namespace such as a::b does not.
_IPV6 = re.compile(r"[23](?<![\w:.][23])[0-9a-f]{3}:[0-9a-f:]{2,35}(?![\w:])", re.ASCII | re.IGNORECASE)
_VERSION = re.compile(
    r"(?:versions?|v\.|ver\.|release|build|firmware|driver|section|chapter|clause|article|版本|第)\s*[:\uff1a]?\s*v?$",
    re.IGNORECASE,
)

_PHONE = re.compile(
    r"[+(\d](?<![\w+.,/=#@-][+(\d])(?<![$€£¥] [+(\d])(?:"
    # International: +49 (0)30 1234-567.
    r"(?<=\+)[1-9]\d{0,2}(?:[ .-]?\(\d{1,4}\))?(?:[ .-]?\d{2,4}){2,5}"
    # North American: (555) 234-5678, 555-234-5678; area and exchange begin with 2 to 9.
    r"|(?:(?<=\()[2-9]\d\d\) ?|(?<=[2-9])\d\d[-. ])[2-9]\d\d[-.]\d{4}"
    # Chinese mobile, 138 1234 5678, and landline, 010-12345678.
    r"|(?<=1)[3-9]\d(?:\d{8}|-\d{4}-\d{4}| \d{4} \d{4})|(?<=0)\d{2,3}-\d{7,8}"
    r")(?![\w%‰]|[-+*/=.,:]\d| ?(?:元|万|亿|美元|dollars?\b|euros?\b|USD|EUR|CNY|RMB))",
    re.ASCII,
)
_NUMBER_AFTER_COLON = re.compile(r"([:\uff1a]\s?)(\+?\(?\d[\d ()./-]{5,20}\d)(?![\w@]|[.:]\d)", re.ASCII)
_PHONE_LABEL = re.compile(
    r"(?<![a-z])(?:tel|telephone|phone|fax|mobile|cell|电话|手机|传真)(?: ?(?:no\.?|number))?\.?\s?$", re.IGNORECASE
)
_PHONE_DIGITS = range(7, 16)


def scrub_email(text: str) -> str:
    """Replace e-mail addresses by ``<email>``."""
    return _EMAIL.sub("<email>", text) if "@" in text else text


def scrub_ip(text: str) -> str:
    """Replace IPv4 and IPv6 addresses that can be reached from everywhere by ``<ip>``.

    Private and reserved addresses identify nobody and stay. So do four numbers below 10, or after "version",
    "section" and the like, and what hangs on a path or a longer number.
    """
    if "." in text:
        text = _IPV4.sub(_replace_ipv4, text)
    return _IPV6.sub(_replace_ipv6, text) if ":" in text else text


def scrub_phone(text: str) -> str:
    """Replace phone numbers by ``<phone>``.

    Known by their form are international (``+``), North American and Chinese ones; others by a word such as "Tel:"
    before them.
    """
    text = _PHONE.sub(_replace_phone, text)
    return _NUMBER_AFTER_COLON.sub(_replace_labelled, text)


SCRUBBERS: dict[str, Callable[[str], str]] = {"email": scrub_email, "ip": scrub_ip, "phone": scrub_phone}
"""Kind -> what replaces it, in the order in which they are to be applied."""


def _replace_ipv4(match: re.Match[str]) -> str:
    address, begin = match[0], match.start()
    parts = address.split(".")
    if all(len(part) == 1 for part in parts) or _VERSION.search(match.string, max(0, begin - 16), begin):
        return address
    return "<ip>" if _is_public(address) else address


def _replace_ipv6(match: re.Match[str]) -> str:
    address = match[0].rstrip(":")
    return "<ip>" + match[0][len(address) :] if _is_public(address) else match[0]


def _is_public(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_global
    except ValueError:
        return False


def _replace_phone(match: re.Match[str]) -> str:
    return "<phone>" if _digits(match[0]) in _PHONE_DIGITS else match[0]


def _replace_labelled(match: re.Match[str]) -> str:
    begin = match.start()
    labelled = _PHONE_LABEL.search(match.string, max(0, begin - 20), begin)
    return f"{match[1]}<phone>" if labelled and _digits(match[2]) in _PHONE_DIGITS else match[0]


def _digits(text: str) -> int:
    return sum(character.isdigit() for character in text)
