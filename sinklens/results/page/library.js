globalThis.sinklens ??= { drawn: [] }; // promises of what is drawn
sinklens.unpacked ??= (packed) => {
  const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
  return new Response(new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip")));
};
sinklens.library ??= (name, packed) => {
  sinklens[name] ??= (async () => {
    const script = document.createElement("script");
    script.textContent = await sinklens.unpacked(packed).text();
    document.head.append(script);
  })();
};
