"""Varied lines of text that reveal any difference between two tokenizers."""

import random

FIXED = (
    "",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\t",
    "\r\n",
    "Hello, world!",
    " leading space",
    "trailing space ",
    "two  spaces   three    four     five",
    "tab\tseparated\t\tvalues",
    "line\nbreak\n\nparagraph\n\n\nthree",
    "mixed \n \n\t \r\n end",
    "def f(x):\n    return x ** 2  # square\n",
    "for (int i = 0; i < n; ++i) {\n\tsum += a[i];\n}\n",
    '{"key": [1, 2.5, null, true], "s": "\\u00e9"}',
    "<div class='a'>&nbsp;</div>",
    "SELECT * FROM t WHERE a >= 10 AND b <> 'x';",
    "0 1 12 123 1234 12345 1234567890",
    "3.14159 -2e10 0xFF 1,000,000 50% $9.99",
    "1st 2nd v2.0.1 2024-01-31T12:34:56Z",
    "½ ⅓ ² ³ ① Ⅷ ٣ ४ ५ 〇 十",
    "I'm you're he's we'll they'd I've don't",
    "I'M YOU'RE HE'S WE'LL THEY'D I'VE DON'T",
    "rock 'n' roll ''quoted'' \"double\"",
    "café naïve façade Ångström",
    "cafe\u0301 nai\u0308ve A\u030angstro\u0308m",
    "Zalgo: h\u0335\u0321e\u0334\u0322l\u0337\u0328l\u0336o",
    "今天天气很好，我们去公园吧。",
    "我有3个苹果和12个橘子",
    "日本語のテキスト、カタカナとひらがな。",
    "한국어 문장입니다. 안녕하세요!",
    "مرحبا بالعالم، كيف حالك؟ ١٢٣",
    "שלום עולם",
    "Привет, мир! Ёлка",
    "Γειά σου Κόσμε",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "Tiếng Việt có dấu",
    "🙂🚀👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️",
    "a🙂b 🙂 c",
    "∑∫√∞≠≤≥ → ⇒ α+β=γ",
    "zero\u200bwidth\u200djoin\ufeffbom",
    "nbsp\u00a0thin\u2009em\u2003ideographic\u3000end",
    "line\u2028sep\u2029par\x0bvt\x0cff\x85nel",
    "control \x00\x01\x1b\x7f chars",
    "\U0001d4d7\U0001d4ee\U0001d4f5\U0001d4f5\U0001d4f8 math letters",
    "\ue000 private \U0010ffff last",
    "------ ====== ****** ......",
    "!!!???,,,;;;:::",
    "snake_case camelCase PascalCase kebab-case SCREAMING_CASE",
    "https://example.com/path?q=1&r=%20#frag",
    "user@example.org +1 (555) 010-9999",
    "C:\\Users\\name\\file.txt /usr/local/bin",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "<|endoftext|> text <|endoftext|>",
    "a<|im_end|>b <|im_end|> c\n<|im_end|>\n",
    "<|im_start|  broken <|im_en",
    "<bos><start_of_turn>user\nHi<end_of_turn>\n<eos>",
    "<s>[INST] hi [/INST]</s> <unk> <pad>",
    "<repo_name>x<file_sep>y<jupyter_start>",
    "        eight spaces then code",
    " \t \t mixed \t indentation",
)
PIECES = (
    *("the", "of", "Token", "izer", "RUN", "x1", "42", "007", "3.5", "é", "ß", "ñ", "İ", "ſ"),
    *("中文", "の", "한", "ب", "я", "ω", "ह", "🙂", "👍🏽", "\u0301", "\u200d", "½", "²"),
    *(" ", "  ", "   ", "\t", "\n", "\n\n", "\r\n", "\u00a0", "\u3000", ".", ",", "!", "'"),
    *("'s", "'LL", "--", "...", "(", ")", "{", "}", "[", "]", "<", ">", "|", "#", "@", "/"),
    *("\\", "_", "=", "+", "$", "%", "^", "~", "`", '"', ";", ":", "?", "<|im_end|>"),
)


def text_lines(count: int = 300, seed: int = 7) -> list[str]:
    """Return `count` lines: the fixed ones, then random mixtures that depend on the seed."""
    generator = random.Random(seed)
    mixed = [
        "".join(generator.choices(PIECES, k=generator.randint(1, 24)))
        for _ in range(max(0, count - len(FIXED)))
    ]
    return [*FIXED, *mixed][:count]
