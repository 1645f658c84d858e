// What of a pane's text is in sight: its end while it grows, unless the visitor has scrolled away from it, or an element
// that was chosen elsewhere. Where the text goes on above or below, its edge is faded: see pane.css.

const STICKY_PIXELS = 24; // nearer to the end than this, the text keeps its end in sight
const FADED_PIXELS = 12; // what is nearer to an edge is hard to read

function createSight(text, onScroll) {
  let sticking = true;
  let kept = null;
  let top = 0; // as it was last

  const below = () => text.scrollHeight - text.scrollTop - text.clientHeight;

  function fade() {
    top = text.scrollTop;
    text.toggleAttribute("data-above", text.scrollTop > 1);
    text.toggleAttribute("data-below", below() > 1);
  }

  function keepEnd() {
    if (sticking) text.scrollTop = text.scrollHeight;
    fade();
  }

  function bring(element) {
    const [box, view] = [element.getBoundingClientRect(), text.getBoundingClientRect()];
    const around = Math.max(0, view.height - box.height) / 2;
    const edge = Math.min(FADED_PIXELS, around);
    if (box.top >= view.top + edge && box.bottom <= view.bottom - edge) return;
    text.scrollTop += box.top - view.top - around;
    sticking = below() < STICKY_PIXELS;
    fade();
  }

  text.addEventListener("scroll", () => {
    // Text that grew or a box that shrank meanwhile leads away from the end, too, but never up.
    if (text.clientHeight) sticking = below() < STICKY_PIXELS || (sticking && text.scrollTop >= top);
    fade();
    onScroll();
  });
  new ResizeObserver(() => (kept ? bring(kept) : keepEnd())).observe(text);
  return {
    keepEnd,
    bring,
    /** Brings an element that was not the one kept before; else the end stays. */
    keep(element) {
      if (element && element !== kept) bring(element);
      else keepEnd();
      kept = element;
    },
    startOver() {
      sticking = true;
    },
  };
}
