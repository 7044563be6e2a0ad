// The page to play with. What a model wrote goes into the page as text nodes only, never as markup.
//
// A *branch* is one text: a prompt, and the tokens written or put after it. A *piece* is what is shown as one: a token, or
// several that are the bytes of one character. A *voice* is who speaks in a composition: an expert, or the text itself.

const state = {
  info: null, key: "", branches: [], branch: null, pieces: [], chosen: null, shown: null, writing: null, drawn: null, frame: null,
};

const $ = id => document.getElementById(id);
