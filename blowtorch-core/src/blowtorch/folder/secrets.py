"""What must not be written down: values under keys such as `api_key`, and passwords within addresses and commands."""

import re
from collections.abc import Mapping
from typing import Any

from blowtorch.config.yaml12 import dump_yaml, parse_yaml
from blowtorch.errors import ConfigError

HIDDEN = "***"  # stands where a secret stood

_ENDLESS = 2**31 - 1  # columns
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+")

# A key is taken apart into words, whether they are joined by signs or by capitals. These alone make it a secret,
_SECRET = frozenset(
    "password passwords passwd passphrase passcode pwd secret secrets credential credentials authorization jwt cookie "
    "cookies webhook apikey apikeys apitoken accesstoken authtoken accesskey secretkey privatekey clientsecret".split()
)
# these behind one of those that stand beside them,
_SECRET_BEHIND = {
    "key": "access account anthropic api auth comet encryption gemini hf huggingface license master neptune openai "
    "private secret shared signing ssh storage stripe subscription wandb",
    "token": "access api auth bearer refresh session",
    "pass": "admin database db ftp mail mysql postgres proxy redis root smtp user",
    "phrase": "pass",
    "word": "pass",
}
# but not where the key ends with a word for something about a secret.
_ABOUT = frozenset(
    "count dir directory endpoint env expiry field file files folder id ids length manager name names path policy "
    "provider size type uri url var variable".split()
)
# Any other token is a secret too, but for those of texts, which have names as these or look like `<pad>` and `[MASK]`.
_OF_TEXTS = frozenset(
    "action answer assistant audio begin blank bos byte char class cls dist distillation domain drop empty end eos eot "
    "fim first global image img initializer lang language last latent learnable mask max mean middle min newline next "
    "no noise null num oov pad padding patch per placeholder position prefix query reg register sep separator sos "
    "special speaker start state stop style sub subword suffix summary system target task text time tool trigger unk "
    "unknown use video word yes".split()
)
_LOOKS_LIKE_TEXT = re.compile(r"<[^<>]*>|\[\w+\]")

_ADDRESS = re.compile(r"(?<![\w+.-])([A-Za-z][\w+.-]*://)([^\s/?:@]*)(:[^\s/?]*)?@")
_NO_PASSWORDS = (":", ":x-oauth-basic")  # where these stand, the name before them is the secret
_OPTION = re.compile(r"(?<!\S)(--?)([A-Za-z][\w-]*)(\s+)([^-\s]\S*)")
_ASSIGNMENT = re.compile(r"(?<![\w.-])()([\w.-]+)(=)(\"[^\"]*\"|'[^']*'|[^\s&;\"']+)")
_QUOTED = re.compile(r"([\"'])([\w.-]+)([\"']\s*:\s*)(\"(?:[^\"\\]|\\.)*\"|'(?:[^'\\]|\\.)*')")
_SIGNATURE = re.compile(r"([?&](?:[\w-]*signature|sig)=)[^\s&#]+", re.IGNORECASE)
# What a service gives out looks so wherever it stands; of a block that holds a key, no line is shown.
_ISSUED = re.compile(
    r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)|"
    r"\b(?:hf_|gh[opsur]_|github_pat_|glpat-|sk-|xox[abeprs]-|AIza|npm_|pypi-)(?=[\w-]{0,200}\d)[\w-]{20,}|"
    r"(?<=\bBearer )[\w.~+/-]{16,}=*|"
    r"(?<=//hooks\.slack\.com/services/)[\w/]+|(?<=//discord\.com/api/webhooks/)[\w/-]+",
    re.DOTALL,
)
_LINE = re.compile(r"^([ \t]*)([\w-]+)(:[ \t]+)(\S.*)$", re.MULTILINE)


def mask_secrets(value: Any) -> Any:
    """Return a copy with `***` for every value under a key such as `api_key`, and for passwords within texts.

    A key decides on all that stands under it, which no function of leaves can do. Numbers, booleans and null are no
    secrets. Within texts these are: the password of an address, and what follows an option or a name such as `token`.

    >>> mask_secrets({"hf_token": "abc", "max_tokens": 5, "pad_token": "<pad>", "store": "redis://me:abc@host"})
    {'hf_token': '***', 'max_tokens': 5, 'pad_token': '<pad>', 'store': 'redis://me:***@host'}
    """
    if isinstance(value, Mapping):
        return {key: _mask_under(str(key), item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        is_command_line = value and all(isinstance(item, str) for item in value)
        return mask_command_line(list(value)) if is_command_line else [mask_secrets(item) for item in value]
    return mask_text(value) if isinstance(value, str) else value


def mask_command_line(arguments: list[str]) -> list[str]:
    """Return the command line with the values of secrets masked.

    >>> mask_command_line(["train.py", "--token", "abc", "with", "a.api_key=abc", "a={password: abc, b: 1}"])
    ['train.py', '--token', '***', 'with', 'a.api_key=***', "a={password: '***', b: 1}"]
    """
    masked: list[str] = []
    is_value = False  # of an option before it
    for argument in arguments:
        key, sign, value = argument.partition("=")
        is_secret = is_secret_path(key)
        if is_value and not argument.startswith("--") and argument != "with":
            masked.append(_hidden(argument))
        elif is_secret and sign:
            masked.append(f"{key}={_hidden(value)}")
        else:
            is_override = sign and re.fullmatch(r"-*[\w.-]+", key)
            masked.append(f"{key}={_mask_inside(value)}" if is_override else mask_text(argument))
        is_value = is_secret and not sign and argument.startswith("-")
    return masked


def mask_text(text: str) -> str:
    """Return a text with the passwords of its addresses masked, and what it says of secrets by their names.

    >>> mask_text("pull https://abc@host/x?key=1&token=abc as Reader(api_key='abc')")
    'pull https://***@host/x?key=1&token=*** as Reader(api_key=***)'
    """
    text = _SIGNATURE.sub(rf"\1{HIDDEN}", _ADDRESS.sub(_mask_address, _ISSUED.sub(HIDDEN, text)))
    for pattern in (_OPTION, _ASSIGNMENT, _QUOTED, _LINE):
        text = pattern.sub(_mask_named, text)
    return text


def is_partly_hidden(value: Any) -> bool:
    """Return whether a text inside of a value was masked in part, so that what is left of it leads astray."""
    if isinstance(value, Mapping | list):
        return any(map(is_partly_hidden, value.values() if isinstance(value, Mapping) else value))
    return isinstance(value, str) and HIDDEN in value and value != HIDDEN


def is_secret_path(path: str) -> bool:
    """Return whether the value at a dotted key is a secret, by the key itself or by a section that holds it.

    >>> [is_secret_path(path) for path in ("s3.AWSSecretAccessKey", "credentials.user", "eos_token", "token_type")]
    [True, True, False, False]
    """
    *sections, key = path.split(".")
    return is_secret(key) or any(is_secret(section) and not _is_mere_token(section) for section in sections)


def is_secret(key: str) -> bool:
    """Return whether what stands under a key is a secret, unless it is a number."""
    words = _words(key)
    if not words or words[-1] in _ABOUT:
        return False
    pairs = zip(["", *words], words, strict=False)
    named = any(word in _SECRET or word.endswith("password") or before in _words_before(word) for before, word in pairs)
    return named or _is_mere_token(key)


def _words_before(word: str) -> list[str]:
    """Return the words behind which a word, or its plural, makes a key a secret."""
    return _SECRET_BEHIND.get(word, _SECRET_BEHIND.get(word.removesuffix("s"), "")).split()


def _words(key: str) -> list[str]:
    words = [word.lower() for word in _WORD.findall(key)]
    while words and words[-1].isdecimal():  # `api_key_2`
        words.pop()
    return words


def _is_mere_token(key: str) -> bool:
    """Return whether nothing but the word `token` makes a key a secret; a section of that name is none."""
    words = _words(key)
    before = words[-2] if len(words) > 1 else ""
    is_token = words[-1:] == ["token"] and before not in _OF_TEXTS
    return is_token and before not in _SECRET_BEHIND["token"].split()


def _mask_under(key: str, item: Any) -> Any:
    is_masked = is_secret_path(key) and not (isinstance(item, Mapping) and _is_mere_token(key.rpartition(".")[2]))
    return HIDDEN if is_masked and not _is_harmless(item) else mask_secrets(item)


def _is_harmless(value: Any) -> bool:
    """Return whether a value can be no secret: a number, a boolean, null, a token of texts, or only such inside."""
    if isinstance(value, Mapping):
        return all(map(_is_harmless, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_harmless, value))
    if isinstance(value, str):
        return _LOOKS_LIKE_TEXT.fullmatch(value) is not None
    return value is None or isinstance(value, int | float)


def _hidden(text: str) -> str:
    """Return what stands for the value of a secret as it was typed."""
    try:
        return text if _is_harmless(parse_yaml(text, "value")) else HIDDEN
    except ConfigError:
        return HIDDEN


def _mask_address(match: re.Match[str]) -> str:
    scheme, user, password = match[1], match[2], match[3]
    if password is not None and password not in _NO_PASSWORDS:
        return f"{scheme}{user}:{HIDDEN}@"
    # A name alone is a token where pages are fetched; elsewhere it is that of a user, a container or a bucket.
    is_token = user and (password is not None or scheme.lower().endswith(("http://", "https://")))
    return f"{scheme}{HIDDEN}{password or ''}@" if is_token else match[0]


def _mask_named(match: re.Match[str]) -> str:
    before, name, sign, value = match.groups()
    if not is_secret_path(name):
        return match[0]
    inner = value.rstrip(",)]}") if value[0] not in "\"'" else value
    return f"{before}{name}{sign}{_hidden(inner)}{value[len(inner) :]}"


def _mask_inside(text: str) -> str:
    """Mask the value of an override, which may be a whole mapping."""
    try:
        value = parse_yaml(text, "override")
    except ConfigError:
        return mask_text(text)
    if not isinstance(value, Mapping | list):
        return mask_text(text)
    masked = mask_secrets(value)
    return text if masked == value else dump_yaml(masked, default_flow_style=True, width=_ENDLESS).strip()
