// A text as the student's training saw it: WordPieces of prepare.py in JavaScript. Change the two together.

// Printable bytes stand for themselves, the others for characters from U+0100 on, as in every byte-level tokeniser.
const CHARACTERS = [];
for (let byte = 0, next = 256; byte < 256; byte += 1) {
  const isPrintable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte !== 173);
  CHARACTERS.push(String.fromCharCode(isPrintable ? byte : next++));
}

// From a text to its first ids, `tokenize(text, length)`, as a tokenizer.json of keras-distill's own says.
export function textTokenizer({ model, pre_tokenizer: { pretokenizers } }) {
  const vocabulary = new Map(Object.entries(model.vocab));
  const unknown = vocabulary.get(model.unk_token);
  const longest = [...vocabulary.keys()].reduce((most, piece) => Math.max(most, piece.length), 0);
  const words = new RegExp(pretokenizers[0].pattern.Regex, "gu");
  const encoder = new TextEncoder();

  function pieces(word) {
    const letters = Array.from(encoder.encode(word), (byte) => CHARACTERS[byte]).join("");
    const ids = [];
    for (let start = 0, stop; start < letters.length; start = stop) {
      for (stop = Math.min(letters.length, start + longest); stop > start; stop -= 1) {
        if (vocabulary.has(letters.slice(start, stop))) break;
      }
      if (stop === start) return [unknown];
      ids.push(vocabulary.get(letters.slice(start, stop)));
    }
    return ids;
  }

  return (text, length) => {
    const ids = [];
    // Half a surrogate pair is no character; a final sigma is a sigma.
    const lowered = text.replace(/\p{Surrogate}/gu, "\ufffd").replaceAll("\u03a3", "\u03c3").toLowerCase();
    for (const [word] of lowered.matchAll(words)) {
      ids.push(...pieces(word));
      if (ids.length >= length) break;
    }
    return ids.slice(0, length);
  };
}

// The student's input of one text: cut to length, or padded behind.
export function textInput(specification, tokenize, text) {
  const ids = new Int32Array(specification.length).fill(specification.padding);
  ids.set(tokenize(text, specification.length));
  return ids;
}
