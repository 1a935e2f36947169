Promise.all(sinklens.drawn).then(() => { document.documentElement.dataset.ready = ""; });
