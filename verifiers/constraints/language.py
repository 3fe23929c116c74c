"""Which language a text is written in: by its script, and within Latin, Cyrillic, Arabic and Devanagari by
its commonest words and letters. Deterministic and without downloads; IFEval's reference uses langdetect,
which samples. Codes are langdetect's (ISO 639-1, and zh-cn, zh-tw).
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

_SCRIPTS = {
    "kn": "KANNADA", "pa": "GURMUKHI", "gu": "GUJARATI", "ta": "TAMIL", "te": "TELUGU", "ml": "MALAYALAM",
    "bn": "BENGALI", "th": "THAI", "ko": "HANGUL", "el": "GREEK", "he": "HEBREW",
}  # fmt: skip
_BY_SCRIPT = {script: code for code, script in _SCRIPTS.items()}

# The commonest words of each language that shares its script with others.
_WORDS = {
    "en": "the of and to in is that it for was on are as with his they at be this from have or by one had not but "
    "what all were when we there can an your which their said if do will each how them then she he you my me so i a "
    "about would these her make like him into time has look more write see no way could people than been who its now "
    "our just also some know take get here am did us don't it's i'm",
    "de": "der die und in den von zu das mit sich des auf für ist im dem nicht ein eine als auch es an werden aus er "
    "hat dass sie nach wird bei einer um am sind noch wie einem über einen so zum war haben nur oder aber vor zur bis "
    "mehr durch man sein wurde sei ich wir ihr du mich dich mein kein wenn was",
    "fr": "de la le et les des en un du une que est pour qui dans a par plus pas au sur ne se ce il sont avec son "
    "elle nous vous je mais ou leur être comme cette même tout ses aux c'est d'un été on deux très bien sans peut",
    "es": "de la que el en y a los se del las un por con no una su para es al lo como más o pero sus le ha me si sin "
    "sobre este ya entre cuando todo esta ser son dos también fue había era muy años hasta desde está mi porque qué",
    "pt": "de a o que e do da em um para com não uma os no se na por mais as dos como mas ao ele das à seu sua ou "
    "quando muito nos já eu também só pelo pela até isso ela entre depois sem mesmo aos seus são você está ser foi",
    "it": "di e il la che in un per è una sono non del con i le si da al come più gli dei nel della alla ha ma lo su "
    "anche delle o questo ci se ed mi ti era essere loro hanno suo perché molto stato",
    "nl": "de van het een en in is dat op te zijn met voor niet aan er om ook als dan maar bij nog uit naar heeft "
    "wordt door over ze hij deze je was worden of tot al meer kan geen zo werd ik wij hun",
    "sv": "och i att det som en på är av för med den till har de inte om ett men var jag sig från vi så kan nu när "
    "också eller hade man under skulle över vid mycket efter sin hur alla mot",
    "da": "og i at det er en til på som for med de den af ikke der har et han vi var jeg fra sig men om så kan hun "
    "skal vil havde også efter ved eller nu være meget hvor mig dig blev",
    "no": "og i det er på en til som for at av med de den har ikke et jeg han vi var fra seg men om så kan hun skal "
    "vil hadde også etter ved eller nå være mye hvor meg deg ble etter",
    "fi": "ja on ei se että hän oli en mutta ovat joka kun niin kuin myös tai sen mukaan ole vain jo mitä nyt olen "
    "minä sinä tämä siitä kanssa olla hänen voi ovat jos",
    "pl": "w i na z się do nie że jest to o od po jak za przez ale co dla są ich być już tym czy tak także lub jego "
    "oraz tylko był może który która ma pod kiedy bardzo",
    "cs": "a se na je v to že s z do i o ale jako by za pro po byl tak co jsem k jsou od už jeho když která který "
    "ve nebo jen aby být má které",
    "sk": "a sa na je v to že s z do i o ale ako by za pre po bol tak čo som k sú od už jeho keď ktorá ktorý vo "
    "alebo len aby byť má ktoré",
    "sl": "in je v na se da za so ki z pa s ne tudi kot po iz bi o od še pri do jo ali ni ko bil med kaj zelo",
    "hr": "i je u na se da su za od s a o koji kao ne to iz ali do što bio će ili sam samo nije koja te kako više",
    "hu": "a az és hogy nem is egy van ez azt de csak ha meg volt már mint el vagy kell még minden ki amely "
    "után lehet során magyar nagyon",
    "ro": "de și în a la cu pe o că nu un este din pentru să se ce mai sau au fost care prin sunt dar lui după fi "
    "acest ca al ale foarte",
    "tr": "ve bir bu da de için ile çok o ne gibi daha en kadar olarak olan var ben ama mi sonra her değil onun "
    "şey yok ise ki oldu",
    "vi": "và của là có trong cho không được các một những với người để khi này từ đã như về đến ra nhiều sẽ hay "
    "cũng tôi bạn rất chúng",
    "id": "yang dan di dari untuk dengan ini itu pada tidak dalam akan adalah ke oleh saya juga ada atau lebih "
    "mereka karena sebagai dapat telah bisa kami kita anda sangat",
    "sw": "ya na wa kwa ni katika la za hii kuwa cha kama hiyo yake ambayo pia lakini au watu mimi sana huo hilo "
    "yangu wetu bila",
    "tl": "ang ng sa na mga ay at ito ko mo ka para siya hindi ni si kung may nang niya lang din namin natin "
    "isang sila ako",
    "so": "waa iyo ka ku oo in ay soo waxaa ah la uu wax badan si kale ama isaga",
    "sq": "të e në dhe një për me nga që është si nuk do ka më u i janë por ai ajo kjo ky",
    "et": "ja on ei et see ta oli kui ma ka oma aga mis ning või nii siis seda",
    "lv": "un ir ka no ar uz par tas kas bija bet nav arī kā es viņš pēc lai",
    "lt": "ir yra kad tai su iš į bet buvo ne kaip jis apie nuo jo aš bei dėl labai",
    "ca": "de la i el que a en les els un per amb una no es del és dels al com més ha són però seva també",
    "af": "die en van in is het 'n dat nie te vir op met ek sy wat hy was aan om ons jou sal maar hulle baie",
    "cy": "y yn a i o yr ar ei am mae oedd wedi gan bod fel ond hefyd ac eu sydd",
    "ru": "и в не на я что с он как это по но они мы она так его для от вы за из у же был быть о если или когда "
    "все только есть может очень",
    "uk": "і в не на я що з він як це по але вони ми вона так його для від ви за із у ж був бути про якщо або коли "
    "все тільки є може дуже та й",
    "bg": "и в не на аз че с той как това по но те ние тя така за от вие из беше да се са си ще е или когато "
    "всички само има може много",
    "mk": "и во не на јас дека со тој како ова по но тие ние таа така за од вие беше да се си ќе е или кога "
    "сите само има може многу",
    "ar": "في من على إلى أن هذا هذه التي الذي كان ما لا عن مع أو هو هي كل بعد لم قد بين ذلك حيث و يمكن كما",
    "fa": "و در به از که این را با است برای آن یک می تا بر هم خود ما کرد شد نیز باید های اما من شما بود",
    "ur": "کے میں کی ہے اور سے کا کو اس کہ پر نے ہیں یہ بھی کر ایک تھا جو نہیں تو ہو گیا وہ لیے آپ ہم",
    "hi": "के में की है और से का को इस कि पर ने हैं यह भी कर एक था जो नहीं तो हो गया वह लिए आप हम हूं मैं मेरे",
    "mr": "आहे आणि या च्या ते मध्ये हे तो ती आहेत होते केली साठी की एक नाही काही मी आपण असे करून म्हणून आम्ही",
    "ne": "छ र को मा हो यो पनि छन् लागि गर्न भएको तथा एक थियो हुन् नै गरेको हुन्छ म तपाईं हामी",
}  # fmt: skip
_SETS = {code: frozenset(text.split()) for code, text in _WORDS.items()}
_LETTERS = {
    "de": "äöüß", "fr": "çéèêàùœ", "es": "ñ¿¡", "pt": "ãõç", "sv": "åäö", "da": "åæø", "no": "åæø", "fi": "äö",
    "pl": "ąęłńśźż", "cs": "ěřůž", "sk": "ľĺŕôä", "hr": "čćđšž", "sl": "čšž", "hu": "őűö", "ro": "ăâîșț",
    "tr": "ğışç", "vi": "ạảấầẩẫậắằẵặẹẻẽếềểễệỉịọỏốồổỗộớờởỡợụủứừửữựỳỵỷỹđơư", "et": "õäöü", "lv": "āēīūģķļņ",
    "lt": "ąčęėįšųūž", "uk": "іїєґ", "ru": "ыэё", "mk": "ѓќљњџ", "fa": "پچژگ", "ur": "ٹڈڑںےہ", "sq": "ëç", "it": "èàòù",
}  # fmt: skip
_FAMILIES = {
    "LATIN": tuple(c for c in _SETS if c not in ("ru", "uk", "bg", "mk", "ar", "fa", "ur", "hi", "mr", "ne")),
    "CYRILLIC": ("ru", "uk", "bg", "mk"),
    "ARABIC": ("ar", "fa", "ur"),
    "DEVANAGARI": ("hi", "mr", "ne"),
}
LANGUAGES = frozenset({*_SETS, *_SCRIPTS, "ja", "zh-cn", "zh-tw"})
_TRADITIONAL = frozenset("們這個來說時對為國學會後過發還沒點問題開關現實經長門東車書無電話語")
_SIMPLIFIED = frozenset("们这个来说时对为国学会后过发还没点问题开关现实经长门东车书无电话语")
_ENGLISH = re.compile(r"ing$|tion$|ness$|ly$|ous$|ght|^th|^wh|^sh|['\u2019]s$")
MAX_LETTERS = 20_000  # looked at


def detect(text: str) -> str | None:
    """The code of the text's language; None when it has no letters."""
    letters = [char for char in text[: 4 * MAX_LETTERS] if char.isalpha()][:MAX_LETTERS]
    if not letters:
        return None
    scripts = Counter(script_of(char) for char in letters)
    if scripts["HIRAGANA"] + scripts["KATAKANA"] > 0.05 * len(letters):
        return "ja"
    script = scripts.most_common(1)[0][0]
    if script == "CJK":
        chars = set(letters)
        return "zh-tw" if len(chars & _TRADITIONAL) > len(chars & _SIMPLIFIED) else "zh-cn"
    if script in _BY_SCRIPT:
        return _BY_SCRIPT[script]
    return _by_words(text[: 4 * MAX_LETTERS], _FAMILIES.get(script, ()))


def is_language(text: str, code: str) -> bool:
    """Whether `detect` says `code`; a text without letters is in every language, as in IFEval's reference."""
    found = detect(text)
    return found is None or found == code


def script_of(char: str) -> str:
    """The first word of a character's name in Unicode: LATIN, CJK, HIRAGANA; LATIN for all of ASCII."""
    if char.isascii():
        return "LATIN"
    return unicodedata.name(char, "?").split()[0]


def _by_words(text: str, candidates: tuple[str, ...]) -> str | None:
    if not candidates:
        return None
    words = re.findall(r"[^\W\d_]+(?:['\u2019][^\W\d_]+)?[\u0900-\u0963]*", text.lower())
    if "hi" in candidates:
        words = re.findall(r"[\u0900-\u0963]+", text)
    letters = Counter(text.lower())
    total = max(1, len(words))
    scores = {}
    for code in candidates:
        known = sum(word in _SETS[code] for word in words) / total
        special = sum(letters[char] for char in _LETTERS.get(code, "")) / total
        foreign = sum(n for char, n in letters.items() if char.isalpha() and not char.isascii()) / total
        scores[code] = (
            known + 0.5 * special - (0.5 * max(0.0, foreign - special) if candidates[0] == "en" else 0.0)
        )
    if "en" in scores:  # verse and lists have few of the commonest words
        scores["en"] += 0.3 * sum(_ENGLISH.search(word) is not None for word in words) / total
    best = max(scores, key=lambda code: (scores[code], code == "en"))
    return best if scores[best] > 0 or candidates[0] != "en" else "en"
