// What of a pane's text is in sight: its end while it grows, unless the visitor has scrolled away from it, or an element
// that was chosen elsewhere.

const STICKY_PIXELS = 24; // nearer to the end than this, the text keeps its end in sight

function createSight(text, onScroll) {
  let sticking = true;
  const keepEnd = () => {
    if (sticking) text.scrollTop = text.scrollHeight;
  };
  text.addEventListener("scroll", () => {
    const { scrollHeight, scrollTop, clientHeight } = text;
    if (clientHeight) sticking = scrollHeight - scrollTop - clientHeight < STICKY_PIXELS;
    onScroll();
  });
  new ResizeObserver(keepEnd).observe(text);
  return {
    keepEnd,
    startOver() {
      sticking = true;
    },
    bring(element) {
      const [box, view] = [element.getBoundingClientRect(), text.getBoundingClientRect()];
      if (box.top < view.top || box.bottom > view.bottom) text.scrollTop += box.top - view.top - view.height / 3;
    },
  };
}
