"""The page's style sheet, for bright and dark screens, wide and narrow ones, and paper."""

CSS = """
:root { color-scheme: light dark; --page: #fafaf9; --panel: #fff; --ink: #1d2024; --soft: #646b75; --line: #e2e4e7;
  --grid: #eceef0; --good: #17803d; --bad: #c02b23; --warn: #a05a00; --hot: 214 76 44; --cool: 47 104 178; --c0:
  #2866b8; --c1: #d9680c; --c2: #2c8a4b; --c3: #8250c4; --c4: #c73a5f; --c5: #12899a; --c6: #8a6d1f; --c7: #8d949e;
  --changed: #fff3cf; }
@media (prefers-color-scheme: dark) { :root { --page: #131519; --panel: #1a1d22; --ink: #e4e6ea; --soft: #969ea9;
  --line: #2d323a; --grid: #262b32; --good: #5cc783; --bad: #f2796f; --warn: #e6a94d; --hot: 240 112 72; --cool: 96
  156 230; --c0: #73a9ee; --c1: #f29b4b; --c2: #6cc287; --c3: #b795ee; --c4: #f0819c; --c5: #57c3d1; --c6: #d3b55c;
  --c7: #7f8894; --changed: #3b3318; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, "Segoe UI", "Helvetica Neue",
  "DejaVu Sans", sans-serif; font-variant-numeric: tabular-nums; }
main { max-width: 1120px; margin: 0 auto; padding: 28px 20px 72px; }
header { border-bottom: 1px solid var(--line); padding-bottom: 20px; }
h1 { font-size: 26px; line-height: 1.25; margin: 0; font-weight: 650; overflow-wrap: anywhere; display: inline; }
h2 { font-size: 18px; margin: 0 0 10px; font-weight: 650; }
h3 { font-size: 14px; margin: 26px 0 8px; font-weight: 650; }
.two > div > h3:first-child { margin-top: 0; }
h3 + .note { margin: 0 0 8px; }
section { margin-top: 44px; }
p { margin: 0 0 10px; max-width: 104ch; }
a { color: var(--c0); text-decoration: none; }
a:hover { text-decoration: underline; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; font-size: 13px; margin-top: 16px; }
figure { margin: 0; min-width: 0; }
code, pre, .mono { font-family: ui-monospace, "SF Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace; }
.soft, .note, .missing { color: var(--soft); }
.note { font-size: 12.5px; line-height: 1.45; margin: 6px 0 0; }
.missing { font-style: italic; }
.state { font-size: 12.5px; font-weight: 600; padding: 2px 9px; border-radius: 9px; border: 1px solid; margin-left:
  10px; white-space: nowrap; vertical-align: 4px; }
.finished { color: var(--good); }
.failed { color: var(--bad); }
.stopped, .unfinished { color: var(--warn); }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(150px, 1fr)); gap: 18px 24px; margin: 20px 0
  22px; }
.tiles div { min-width: 0; }
.tiles b { display: block; font-size: 24px; line-height: 1.2; font-weight: 600; }
.tiles span { display: block; font-size: 12.5px; color: var(--soft); line-height: 1.4; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 2px 18px; margin: 0; font-size: 13.5px; }
dt { color: var(--soft); }
dd { margin: 0; overflow-wrap: anywhere; min-width: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13.5px; }
th { font-weight: 500; color: var(--soft); text-align: left; white-space: nowrap; }
th, td { padding: 3px 18px 3px 0; vertical-align: baseline; }
td.n, th.n { text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); }
.two { display: grid; gap: 26px 44px; align-items: start; grid-template-columns: repeat(auto-fit, minmax(min(100%,
  400px), 1fr)); margin-top: 22px; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 420px), 1fr)); gap: 30px 36px; }
.charts.three { grid-template-columns: repeat(auto-fit, minmax(min(100%, 300px), 1fr)); }
figcaption { font-size: 13.5px; margin-bottom: 8px; display: flex; flex-wrap: wrap; gap: 0 14px; align-items:
  baseline; }
figcaption b { font-weight: 600; }
.legend { display: flex; flex-wrap: wrap; gap: 0 12px; font-size: 12px; color: var(--soft); }
.legend span { white-space: nowrap; }
.legend i { display: inline-block; width: 16px; border-top: 2px solid var(--c); margin-right: 5px; vertical-align:
  4px; }
.legend i.thin { border-top-width: 1px; }
.legend i.thick { border-top-width: 3px; }
.legend i.dashed { border-top-style: dashed; }
.plot { display: grid; grid-template-columns: 46px 1fr; grid-template-rows: 190px 18px; padding-right: 14px; }
.left { position: relative; }
.left span { position: absolute; right: 8px; font-size: 11px; line-height: 14px; margin-bottom: -7px; color:
  var(--soft); white-space: nowrap; }
.below { position: relative; height: 18px; font-size: 11px; color: var(--soft); grid-column: 2; }
.below span { position: absolute; top: 4px; line-height: 14px; transform: translateX(-50%); white-space: nowrap; }
.area { position: relative; border-bottom: 1px solid var(--line); border-left: 1px solid var(--line); }
svg { display: block; width: 100%; height: 100%; overflow: visible; }
svg path { fill: none; vector-effect: non-scaling-stroke; }
.grid { stroke: var(--grid); stroke-width: 1; }
.curve { stroke: var(--c); stroke-width: 1.6; stroke-linejoin: round; }
svg .range { fill: var(--c); opacity: .2; }
.curve.thin { stroke-width: 1; opacity: .8; }
.curve.thick { stroke-width: 2.4; }
.curve.dashed { stroke-dasharray: 5 4; stroke-width: 1.3; }
.dots { stroke: var(--c); stroke-width: 6; stroke-linecap: round; }
.c0 { --c: var(--c0); }
.c1 { --c: var(--c1); }
.c2 { --c: var(--c2); }
.c3 { --c: var(--c3); }
.c4 { --c: var(--c4); }
.c5 { --c: var(--c5); }
.c6 { --c: var(--c6); }
.c7 { --c: var(--c7); }
.ink { --c: var(--ink); }
.area hr { position: absolute; top: 0; bottom: 0; width: 0; margin: 0; border: 0; border-left: 1px solid var(--soft);
  opacity: .6; pointer-events: none; }
#tip { position: fixed; z-index: 2; pointer-events: none; background: var(--panel); border: 1px solid var(--line);
  border-radius: 5px; padding: 5px 9px; font-size: 12px; line-height: 1.5; box-shadow: 0 2px 8px rgb(0 0 0 / .14);
  max-width: 320px; }
#tip div { display: flex; gap: 14px; justify-content: space-between; }
#tip i { display: inline-block; width: 9px; height: 9px; border-radius: 2px; background: var(--c); margin-right: 6px;
  }
.heat { margin-top: 26px; }
.map { display: grid; grid-template-columns: minmax(0, max-content) minmax(0, 1fr) max-content; grid-template-rows:
  calc(var(--row) * var(--rows)) 18px; }
.rows, .side { font-size: min(11px, calc(var(--row) - .5px)); line-height: var(--row); }
.rows { padding-right: 8px; text-align: right; max-width: 190px; min-width: 0; }
.rows span, .side span { display: block; height: var(--row); overflow: hidden; text-overflow: ellipsis; white-space:
  nowrap; }
.side { padding-left: 10px; text-align: right; color: var(--soft); min-width: 58px; }
.heading { font-size: 11px; line-height: 14px; padding: 4px 0 0 10px; color: var(--soft); text-align: right; }
.field { position: relative; background: var(--grid); }
.field img { position: absolute; width: 100%; height: 100%; image-rendering: pixelated; }
.field u { position: absolute; left: 0; right: 0; border-top: 1px solid var(--ink); opacity: .4; text-decoration:
  none; }
.field b { position: absolute; outline: 1.5px solid var(--ink); pointer-events: none; }
.scale { position: relative; max-width: 420px; height: 30px; margin: 0 8px 12px 16px; }
.bar { display: block; height: 10px; }
.bar.dark { display: none; }
.scale u { position: absolute; top: -3px; height: 16px; border-left: 2px solid var(--ink); margin-left: -1px; }
.scale .below { height: 18px; }
.scale .marked { color: var(--ink); font-weight: 600; }
@media (prefers-color-scheme: dark) { .bar.light { display: none; } .bar.dark { display: block; } }
.film { display: grid; gap: 6px 8px; min-width: 760px; font-size: 11px; color: var(--soft); align-items: center; }
.film .head { text-align: center; }
.film .name { line-height: 1.35; padding-right: 4px; }
.film .cell { height: 68px; border: 1px solid var(--line); background: var(--panel); padding: 4px 3px; }
.film .ends { display: flex; flex-direction: column; justify-content: space-between; height: 68px; text-align: right;
  }
.findings { padding-left: 20px; margin: 0 0 10px; max-width: 104ch; }
details { margin-top: 18px; font-size: 13.5px; }
summary { cursor: pointer; color: var(--soft); margin-bottom: 8px; }
.examples { display: grid; grid-template-columns: repeat(auto-fill, minmax(118px, 1fr)); gap: 20px 16px; margin-top:
  16px; }
.examples div.pic { aspect-ratio: 1; display: flex; align-items: center; justify-content: center; overflow: hidden;
  background: var(--grid); border-radius: 3px; }
.examples img { max-width: 100%; max-height: 100%; }
.examples img.tiny { width: 100%; height: 100%; object-fit: contain; image-rendering: pixelated; }
.examples b { display: block; font-size: 13px; font-weight: 600; line-height: 1.35; margin-top: 6px; overflow-wrap:
  anywhere; }
.examples span { font-size: 11.5px; color: var(--soft); line-height: 1.4; overflow-wrap: anywhere; overflow: hidden;
  display: -webkit-box; -webkit-box-orient: vertical; -webkit-line-clamp: 2; }
.overlays { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 480px), 1fr)); gap: 24px 28px;
  margin-top: 16px; }
.panels { display: grid; gap: 4px; }
.panels div { position: relative; min-width: 0; }
.panels img { display: block; width: 100%; border-radius: 3px; }
.panels i { display: block; font-size: 11px; font-style: normal; color: var(--soft); }
.overlays b { display: block; font-size: 13px; font-weight: 600; margin-top: 2px; overflow-wrap: anywhere; }
.overlays span { display: block; font-size: 11.5px; color: var(--soft); line-height: 1.4; overflow-wrap: anywhere; }
.key { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 12.5px; }
.key span { white-space: nowrap; }
.swatch { display: inline-block; width: 11px; height: 11px; border-radius: 2px; border: 1px solid var(--line);
  margin-right: 6px; vertical-align: -1px; }
.confusion { font-size: 12px; }
.confusion td { text-align: right; padding: 4px 7px; min-width: 30px; border: 1px solid var(--page); background:
  rgb(var(--hot) / var(--a, 0)); }
.confusion td.right { background: rgb(var(--cool) / var(--a)); }
.confusion td.zero { color: var(--line); }
.confusion th { padding: 4px 8px 4px 0; border: 0; }
.confusion thead th { text-align: right; padding: 4px 7px; }
.confusion td.sum { background: none; color: var(--soft); padding-left: 12px; }
.confusion th span { display: inline-block; max-width: 130px; overflow: hidden; text-overflow: ellipsis;
  vertical-align: bottom; }
.confusion thead th { vertical-align: bottom; }
.turned thead th span { writing-mode: vertical-rl; transform: rotate(180deg); max-width: none; max-height: 120px; }
.recipe { font-size: 12.5px; line-height: 1.6; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.recipe mark { background: var(--changed); color: inherit; padding: 1px 3px; margin: 0 -3px; border-radius: 2px; }
.recipe i { font-style: normal; color: var(--soft); }
ul.plain { padding-left: 18px; margin: 0; font-size: 13.5px; }
ul.plain li { overflow-wrap: anywhere; }
@media (max-width: 620px) {
  main { padding: 18px 14px 48px; }
  .tiles { grid-template-columns: 1fr 1fr; gap: 14px 16px; }
  .tiles b { font-size: 20px; }
  .rows { max-width: 84px; }
  th, td { padding-right: 12px; }
  .examples { grid-template-columns: repeat(auto-fill, minmax(100px, 1fr)); }
  dl { gap: 2px 12px; }
}
@media print { body { font-size: 12px; } section { break-inside: auto; } figure { break-inside: avoid; } }
"""
