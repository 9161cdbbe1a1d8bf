"""How the page looks, on a light ground or a dark one."""

CSS = """
:root { color-scheme: light dark; --ink: #1d2126; --faint: #626a73; --ground: #fafafa; --card: #fff; --rule: #dfe3e7;
  --accent: #1f5fa8; --lost: #b3372a; --gained: #1e7d46; --warning: #fff4d6; --warning-ink: #6b4b00; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8ea; --faint: #9aa2ab; --ground: #0f1215; --card: #15181c; --rule: #2b3138; --accent: #7fb4ee;
    --lost: #ff8a7a; --gained: #63d494; --warning: #3a2f12; --warning-ink: #ffdf9a; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 2rem 1.5rem 5rem; max-width: 1280px; color: var(--ink); background: var(--ground);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", Helvetica, Arial, sans-serif; }
h1 { margin: .1em 0 .4em; font-size: 1.9rem; line-height: 1.2; overflow-wrap: anywhere; }
h2 { margin: 2.6rem 0 .8rem; font-size: 1.3rem; }
h3 { margin: 1.8rem 0 .6rem; font-size: 1rem; overflow-wrap: anywhere; }
header p { color: var(--faint); max-width: 75ch; margin: 0; overflow-wrap: anywhere; }
.kicker { font-weight: 600; letter-spacing: .06em; text-transform: uppercase; font-size: .75rem; }
nav { position: sticky; top: 0; z-index: 2; display: flex; flex-wrap: wrap; gap: 1.4rem; margin-top: 1.4rem;
  padding: .7rem 0; background: var(--ground); border-bottom: 1px solid var(--rule); }
a { color: var(--accent); text-decoration: none; } a:hover { text-decoration: underline; }
section { scroll-margin-top: 3rem; }
details { margin: 0 0 1rem; background: var(--card); border: 1px solid var(--rule); border-radius: 8px; }
summary { padding: .7rem 1rem; font-weight: 600; cursor: pointer; overflow-wrap: anywhere; }
.wide { overflow-x: auto; padding: 0 1rem 1rem; }
.wide svg { display: block; min-width: 720px; max-width: 100%; height: auto; }
table { border-collapse: collapse; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .6rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--rule); }
thead th { color: var(--faint); font-weight: 600; vertical-align: bottom; }
tr > :first-child { position: sticky; left: 0; text-align: left; font-weight: 500; background: var(--card); }
tbody tr:hover > * { background: var(--ground); }
.warning { padding: .7rem 1rem; border-radius: 8px; background: var(--warning); color: var(--warning-ink);
  overflow-wrap: anywhere; }
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1rem; }
.card { overflow: hidden; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  border-top: 3px solid var(--faint); }
.card.lost { border-top-color: var(--lost); } .card.gained { border-top-color: var(--gained); }
.card > div:last-child { padding: .8rem 1rem 1rem; }
.card img { display: block; width: 100%; height: auto; }
.absent { display: grid; place-items: center; aspect-ratio: 2; color: var(--faint); background: var(--ground); }
.kind { margin: 0; font-size: .75rem; font-weight: 600; color: var(--faint); }
.lost .kind { color: var(--lost); } .gained .kind { color: var(--gained); }
.question { margin: .2rem 0 .6rem; font-weight: 600; white-space: pre-wrap; overflow-wrap: anywhere; }
dl { display: grid; grid-template-columns: minmax(4.5rem, max-content) 1fr; gap: .2rem .8rem; margin: 0 0 .6rem; }
dt { max-width: 9rem; color: var(--faint); overflow-wrap: anywhere; }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; }
.right, .wrong, .partly { font-size: .78rem; font-weight: 600; } .right { color: var(--gained); }
.wrong { color: var(--lost); } .partly { color: var(--faint); }
.small { margin: .15rem 0 0; font-size: .78rem; color: var(--faint); overflow-wrap: anywhere; }
li { overflow-wrap: anywhere; } pre { margin: 0; font-size: .8rem; }
@media print { nav { position: static; } details { break-inside: avoid; } }
"""
