/* Search from disk. Browsers start no worker from a file, so a hidden frame runs the worker's script and passes messages on. */
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe"), waiting = []
      frame.hidden = true
      // Within the frame `postMessage` answers the page; messages of the page arrive as in a worker.
      frame.srcdoc =
        "<script>postMessage = function (data) { parent.postMessage(data, '*') }<\/script>" +
        `<script src="${new URL(url, location.href)}"><\/script>`
      frame.addEventListener("load", () => {
        this.send = data => frame.contentWindow.dispatchEvent(new MessageEvent("message", { data }))
        waiting.forEach(this.send)
      })
      addEventListener("message", event => {
        if (event.source !== frame.contentWindow) return
        const answer = new MessageEvent("message", { data: event.data })
        this.dispatchEvent(answer)
        if (this.onmessage) this.onmessage(answer)
      })
      this.send = data => waiting.push(data)
      document.body.append(frame)
    }
    postMessage(data) { this.send(data) }
    terminate() {}
  }
}
