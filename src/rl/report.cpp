#include "rl/report.h"

#include <fmt/format.h>

#include <algorithm>

#include "rl/chart.h"

namespace chorale {
namespace {

constexpr std::string_view style = R"css(
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5b6676; --rule: #dfe4ea; --good: #0f7b4f; --bad: #b3261e;
  --series-0: #2563eb; --series-1: #d97706; --series-2: #0d9488; --series-3: #9333ea; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161d; --card: #1b212b; --ink: #e6eaf0; --soft: #98a4b5; --rule: #303948; --good: #4fd39a; --bad: #ff8a80;
  --series-0: #6ea8fe; --series-1: #fbbf5c; --series-2: #4fd1c0; --series-3: #c792f7; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 1120px; margin: 0 auto; padding: 32px 20px 64px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 40px 0 12px; }
p { margin: 4px 0 12px; color: var(--soft); max-width: 75ch; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(180px, 1fr)); gap: 12px; margin-top: 20px; }
.tile, figure, .card { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; }
.tile { padding: 12px 16px; } .tile b { display: block; font-size: 24px; font-weight: 600; }
.tile span { color: var(--soft); font-size: 13px; }
.good { color: var(--good); } .bad { color: var(--bad); }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(440px, 100%), 1fr)); gap: 14px; }
figure { margin: 0; padding: 12px 14px; min-width: 0; } figcaption { font-weight: 600; margin-bottom: 6px; }
.charts svg { width: 100%; height: auto; display: block; }
svg text { fill: var(--soft); font-size: 11px; } svg .grid { stroke: var(--rule); } svg .line { fill: none; stroke-width: 2; stroke-linejoin: round; }
.key { float: right; margin-left: 14px; font-weight: 400; font-size: 13px; color: var(--soft); }
.key i { display: inline-block; width: 12px; height: 3px; vertical-align: middle; margin-right: 5px; }
.card { overflow-x: auto; } table { border-collapse: collapse; width: 100%; font-size: 14px; }
th, td { text-align: left; padding: 7px 12px; border-top: 1px solid var(--rule); vertical-align: top; }
tr:first-child th { border-top: 0; color: var(--soft); font-weight: 600; } td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
code, pre { font: 13px/1.5 ui-monospace, monospace; } pre { margin: 0; padding: 14px 16px; overflow-x: auto; }
details summary { cursor: pointer; } ul.candidates { margin: 6px 0 0; padding-left: 18px; font-size: 13px; color: var(--soft); }
.masks { display: flex; flex-wrap: wrap; gap: 14px; } .masks figure { flex: 1 1 320px; max-width: 540px; } .masks svg { max-width: 100%; height: auto; display: block; }
)css";

std::string tile(std::string_view value, std::string_view label, std::string_view css_class = "") {
  return fmt::format("<div class=\"tile\"><b class=\"{}\">{}</b><span>{}</span></div>\n", css_class, value,
                     label);
}

double total_seconds(const History& history) {
  double seconds = history.warmup_seconds;
  for (const StepRecord& step : history.steps) seconds += step.seconds();
  return seconds;
}

std::string tiles(const Report& report) {
  const History& history = report.history;
  const LogProbComparison& comparison = history.comparison;
  std::string html = "<div class=\"tiles\">\n";
  if (!history.evaluations.empty()) {
    const EvaluationRecord &first = history.evaluations.front(), &last = history.evaluations.back();
    html += tile(
        fmt::format("{:.3f}", last.reward),
        fmt::format("mean reward on {} held-out prompts; {:.3f} after warm-up", last.prompts, first.reward));
  }
  html += tile(fmt::format("{} of {}", comparison.different, comparison.tokens),
               "tokens whose log-probability differs between rollout and trainer",
               comparison.identical() ? "good" : "bad");
  html += tile(fmt::format("{:.3g}", comparison.max_delta), "largest difference of a log-probability",
               comparison.identical() ? "good" : "bad");
  html +=
      tile(fmt::format("{:.1f} s", total_seconds(history)),
           fmt::format("{} warm-up and {} GRPO steps", history.warmup_losses.size(), history.steps.size()));
  return html + "</div>\n";
}

template <class Value>
ChartLine line_of(const std::vector<StepRecord>& steps, std::string name, int colour, Value value) {
  ChartLine line{.name = std::move(name), .points = {}, .colour = colour};
  for (const StepRecord& step : steps) line.points.emplace_back(step.step, value(step));
  return line;
}

std::string charts(const History& history) {
  const auto& steps = history.steps;
  ChartLine held_out{.name = "held-out prompts, greedy", .points = {}, .colour = 1, .dots = true};
  for (const EvaluationRecord& evaluation : history.evaluations)
    held_out.points.emplace_back(evaluation.step, evaluation.reward);
  ChartLine warmup{.name = "loss", .points = {}, .colour = 3};
  for (const double loss : history.warmup_losses) warmup.points.emplace_back(warmup.points.size() + 1, loss);

  std::string html = "<div class=\"charts\">\n";
  html += draw(
      {.title = "Reward",
       .x_label = "GRPO step",
       .most_y = 1,
       .lines = {line_of(steps, "training prompts, sampled", 0, [](const StepRecord& s) { return s.reward; }),
                 held_out}});
  // The axis of a run without differences still shows the size that rounding errors would have.
  html += draw({.title = "Largest log-probability difference, rollout against trainer",
                .x_label = "GRPO step",
                .most_y = 1e-6,
                .lines = {line_of(steps, "difference", 2, [](const StepRecord& s) { return s.max_delta; })}});
  html += draw({.title = "KL divergence to the reference",
                .x_label = "GRPO step",
                .lines = {line_of(steps, "KL", 0, [](const StepRecord& s) { return s.kl; })}});
  html +=
      draw({.title = "Seconds of a step",
            .x_label = "GRPO step",
            .lines = {line_of(steps, "generate", 0, [](const StepRecord& s) { return s.generate_seconds; }),
                      line_of(steps, "score", 2, [](const StepRecord& s) { return s.score_seconds; }),
                      line_of(steps, "reference", 3, [](const StepRecord& s) { return s.reference_seconds; }),
                      line_of(steps, "learn", 1, [](const StepRecord& s) { return s.learn_seconds; })}});
  html += draw({.title = "Gradient norm",
                .x_label = "GRPO step",
                .lines = {line_of(steps, "norm", 0, [](const StepRecord& s) { return s.gradient_norm; })}});
  if (!warmup.points.empty())
    html += draw({.title = "Warm-up: mean loss of an answer's token",
                  .x_label = "supervised step",
                  .lines = {warmup}});
  return html + "</div>\n";
}

std::string candidates(const Resolution& resolution) {
  std::string html;
  for (const Candidate& candidate : resolution.candidates)
    html += fmt::format("<li class=\"{}\"><code>{}</code>: {}</li>",
                        candidate.name == resolution.implementation ? "good" : "",
                        escape_html(candidate.name), escape_html(candidate.reason));
  return fmt::format("<details><summary>{} considered</summary><ul class=\"candidates\">{}</ul></details>",
                     resolution.candidates.size(), html);
}

std::string resolution_table(const ResolvedRoles& resolved) {
  std::string rows;
  for (const auto& [role, resolutions] : resolved.roles)
    for (const Resolution& r : resolutions)
      rows += fmt::format(
          "<tr><td>{}</td><td>{}</td><td>{}</td><td><code>{}</code><br>{}</td><td><code>{}</code></"
          "td><td><code>{}</code></td><td>{}</td></tr>\n",
          name(role),
          r.first_layer == r.last_layer ? fmt::format("{}", r.first_layer)
                                        : fmt::format("{}-{}", r.first_layer, r.last_layer),
          name(r.phase), escape_html(r.requested), escape_html(r.source), escape_html(r.implementation),
          escape_html(r.fingerprint.to_string()), candidates(r));
  const ParityReport& parity = resolved.parity;
  return fmt::format(
      "<div class=\"card\"><table><tr><th>role</th><th>layers</th><th>phase</th><th>asked "
      "for</th><th>runs</th><th>order of arithmetic</th><th>candidates</th></tr>\n{}</table></div>\n"
      "<p>Parity asked for: <b>{}</b>. Actor and rollout <b class=\"{}\">{}</b>: {}</p>\n",
      rows, parity.requested == Parity::bitwise ? "bitwise" : "off", parity.agree ? "good" : "bad",
      parity.agree ? "agree" : "differ", escape_html(parity.reason));
}

std::string timing_table(const History& history) {
  double generate = 0, score = 0, reference = 0, learn = 0;
  std::int64_t tokens = 0;
  for (const StepRecord& step : history.steps) {
    generate += step.generate_seconds, score += step.score_seconds;
    reference += step.reference_seconds, learn += step.learn_seconds;
    tokens += step.tokens;
  }
  const double total = total_seconds(history);
  const auto row = [&](std::string_view what, double seconds, bool per_token) {
    return fmt::format(
        "<tr><td>{}</td><td class=\"number\">{:.2f}</td><td class=\"number\">{:.0f}%</td><td "
        "class=\"number\">{}</td></tr>\n",
        what, seconds, total > 0 ? 100 * seconds / total : 0,
        per_token && seconds > 0 ? fmt::format("{:.0f}", static_cast<double>(tokens) / seconds) : "");
  };
  return fmt::format(
      "<div class=\"card\"><table><tr><th>phase</th><th class=\"number\">seconds</th><th "
      "class=\"number\">share</th><th class=\"number\">answer tokens per "
      "second</th></tr>\n{}{}{}{}{}</table></div>\n",
      row("warm-up (supervised)", history.warmup_seconds, false), row("generate (rollout)", generate, true),
      row("score (actor, forward)", score, true), row("reference (forward)", reference, true),
      row("learn (actor, forward, backward, optimiser)", learn, true));
}

std::string sample_table(const std::vector<Report::Sample>& samples) {
  std::string rows;
  for (const Report::Sample& sample : samples)
    rows +=
        fmt::format("<tr><td><code>{}</code></td><td><code>{}</code></td><td class=\"{}\">{:g}</td></tr>\n",
                    escape_html(sample.prompt), escape_html(sample.answer),
                    sample.reward > 0 ? "good" : "bad", sample.reward);
  return fmt::format(
      "<div class=\"card\"><table><tr><th>held-out "
      "prompt</th><th>answer</th><th>reward</th></tr>\n{}</table></div>\n",
      rows);
}

std::string settings_table(RunConfig config) {
  std::string rows;
  for (const Setting& setting : settings(config))
    rows += fmt::format("<tr><td><code>{}</code></td><td><code>{}</code></td></tr>\n", setting.key,
                        escape_html(setting.text()));
  return fmt::format(
      "<details class=\"card\"><summary style=\"padding:10px 12px\">every "
      "setting</summary><table>{}</table></details>\n",
      rows);
}

std::string mask_pictures(const std::vector<Report::Picture>& masks) {
  std::string html = "<div class=\"masks\">\n";
  for (const Report::Picture& picture : masks)
    html += fmt::format("<figure><figcaption>{}</figcaption>{}<pre>{}</pre></figure>\n",
                        escape_html(picture.caption), picture.svg, escape_html(picture.summary));
  return html + "</div>\n";
}

}  // namespace

std::string Report::to_html() const {
  std::string html = fmt::format(
      "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" "
      "content=\"width=device-width, initial-scale=1\">"
      "<title>{0} - "
      "Chorale</title><style>{1}</style></head><body><main>\n<h1>{0}</h1>\n<p>{2}<br><code>{3}</code></p>\n",
      escape_html(config.name), style, escape_html(device), escape_html(command));
  html += tiles(*this);
  html += "<h2>Learning</h2>\n" + charts(history);
  html +=
      "<h2>Rollout against trainer</h2>\n<p>What the rollout recorded while it generated, token by token "
      "through the paged cache, against what the trainer "
      "computed for the same tokens in its packed forward pass, before the update.</p>\n";
  html += fmt::format("<div class=\"card\"><pre>{}</pre></div>\n", escape_html(history.comparison.report()));
  html += "<h2>Who computes attention, and why</h2>\n" + resolution_table(roles);
  html += "<h2>What attention sees</h2>\n" + mask_pictures(masks);
  html += "<h2>Answers</h2>\n" + sample_table(samples);
  html += "<h2>Timings</h2>\n" + timing_table(history);
  html += "<h2>Settings</h2>\n" + settings_table(config);
  return html + "</main></body></html>\n";
}

}  // namespace chorale
