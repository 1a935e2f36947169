globalThis.sinklens ??= { drawn: [] }; // promises of what is drawn
sinklens.library ??= (name, packed) => {
  sinklens[name] ??= (async () => {
    const bytes = Uint8Array.from(atob(packed), (character) => character.charCodeAt(0));
    const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(unpacked).text();
    document.head.append(script);
  })();
};
