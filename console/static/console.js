// Drop, paste, preview and enlarging of pictures; without it there are the file chooser, and links to the pictures.
(function () {
  "use strict";
  function show(input) {
    var preview = document.getElementById("preview");
    if (!preview || !input.files || !input.files.length) return;
    if (preview.dataset.url) URL.revokeObjectURL(preview.dataset.url);
    preview.dataset.url = URL.createObjectURL(input.files[0]);
    preview.src = preview.dataset.url;
    preview.hidden = false;
    var kept = document.querySelector('input[name="kept"]');
    if (kept) kept.remove();
    var item = document.querySelector('#try input[name="item"]');
    if (item) item.value = "";
  }
  function take(files) {
    var input = document.getElementById("picture");
    if (!input || !files || !files.length) return false;
    var picture = Array.prototype.find.call(files, function (file) { return file.type.indexOf("image/") === 0; });
    if (!picture) return false;
    var transfer = new DataTransfer();
    transfer.items.add(picture);
    input.files = transfer.files;
    show(input);
    return true;
  }
  document.addEventListener("change", function (event) {
    if (event.target.id === "picture") show(event.target);
  });
  // Chosen before this script ran, or kept by the browser on a reload.
  var chosen = document.getElementById("picture");
  if (chosen) show(chosen);
  document.addEventListener("paste", function (event) {
    if (take(event.clipboardData && event.clipboardData.files)) event.preventDefault();
  });
  // A click on a picture shows it large; Escape, or another click, closes it.
  document.addEventListener("click", function (event) {
    var link = event.target.closest && event.target.closest("a.enlarge");
    if (!link || event.ctrlKey || event.metaKey || event.shiftKey || !window.HTMLDialogElement) return;
    event.preventDefault();
    var small = link.querySelector("img");
    var dialog = document.createElement("dialog");
    var large = document.createElement("img");
    dialog.className = "picture";
    dialog.setAttribute("aria-label", small.alt);
    large.src = link.href;
    large.alt = small.alt;
    dialog.appendChild(large);
    dialog.addEventListener("click", function () { dialog.close(); });
    dialog.addEventListener("close", function () { dialog.remove(); link.focus(); });
    document.body.appendChild(dialog);
    dialog.showModal();
  });
  ["dragover", "drop"].forEach(function (name) {
    document.addEventListener(name, function (event) {
      if (!event.target.closest || !event.target.closest("[data-drop]")) return;
      event.preventDefault();
      if (name === "drop") take(event.dataTransfer.files);
    });
  });
})();
