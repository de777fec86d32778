// Drop, paste and preview of a picture; everything works without it by the file chooser.
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
  ["dragover", "drop"].forEach(function (name) {
    document.addEventListener(name, function (event) {
      if (!event.target.closest || !event.target.closest("[data-drop]")) return;
      event.preventDefault();
      if (name === "drop") take(event.dataTransfer.files);
    });
  });
})();
