#include "study/words.h"

namespace attend {
namespace {

constexpr std::string_view kAdjectives =
    "able absent active actual adult afraid aged alert alike alive alone amber ample ancient angry annual arid ashen "
    "avid awake aware azure bald bare basic big bitter black bland bleak blind blond blue blunt bold brave brief "
    "bright "
    "brisk broad broken bronze brown busy calm candid careful careless central certain cheap cheerful chief chilly "
    "civic clean clear clever close cloudy clumsy coarse cold common complex constant cool copper coral costly cozy "
    "crisp crooked crude cruel curious curly daily damp dark dear decent deep dense dim dirty distant double drab dry "
    "dull dusty eager early earnest east easy elder elegant empty equal even exact exotic fair faint fancy famous fast "
    "feeble fierce final firm flat fond foreign formal fragile frank free fresh friendly frozen full fuzzy gentle "
    "genuine giant glad gloomy golden good grand grateful gray great green grim gruff handsome handy happy hard harsh "
    "heavy helpful hidden high hollow honest huge humble hungry icy ideal idle immense inner ivory jolly keen kind "
    "large last late lavish lazy lean level light little lively local lonely long loose loud loyal lucky mature meek "
    "mellow merry mighty mild minor misty modern modest moist muddy narrow neat nervous new nimble noble noisy normal "
    "odd olive open orange outer oval pale patient plain polite poor precise pretty prime private proper proud public "
    "purple quaint quick quiet rapid rare raw ready recent red regular remote rich rigid ripe robust rosy rough round "
    "royal rude rural rusty sacred safe salty scarce scarlet secret serene severe shallow sharp shiny short shy silent "
    "silver simple sincere sleepy slender slim slow small smart smooth sober soft solar solemn solid sour spare "
    "special spicy steady steep stern stiff stout strange strict strong sturdy subtle sudden sunny sweet swift tall "
    "tame tart tender tense thick thin thirsty tidy timid tiny tired tough tropical urban useful usual vague vain vast "
    "violet vivid warm wary weak wealthy weary west wet white whole wide wild wise witty wooden woolly yellow young";

constexpr std::string_view kNouns =
    "acorn actor airport alarm album anchor ankle answer antler apple apron arch arena armor arrow artist atlas autumn "
    "badge bakery balcony ball banjo bank banner barn barrel basin basket bath beach beacon beak bean bear beard beast "
    "bed bee beetle bell belt bench berry bicycle bird biscuit blade blanket blossom boat bone bonnet book boot border "
    "bottle bowl bracelet branch brass bread breeze brick bridge brook broom brother brush bubble bucket bundle bus "
    "bush butter button cabin cable cactus cake camel camera camp canal candle candy cannon canoe canvas canyon cape "
    "captain caravan card cargo carpet carrot cart castle cat cave ceiling cellar cello chain chair chalk chapel "
    "cheese cherry chess chest chicken child chimney church circle circus city clay cliff clock cloth cloud clover "
    "coach coast coat coin collar comb comet compass cook copy corn corner cottage cotton couch cousin cow crab cradle "
    "crane crate crayon cream creek cricket crop crow crown crystal cup curtain curve cushion dairy dance daughter "
    "dawn deck deer desert desk diamond diary dinner dish doctor dog doll dolphin donkey door dove dragon drawer dress "
    "drum duck dune dwarf eagle ear earth echo editor egg elbow elephant engine envelope evening eye fabric face "
    "factory falcon farm farmer father feast feather fence fern ferry field fig finger fire fish flag flame flask "
    "fleece flight flock flood floor flour flower flute fog forest fork fort fountain fox frame friend frog fruit "
    "funnel garden garlic gate ghost giraffe girl glacier glass globe glove goat goose grape grass gravel guard guest "
    "guitar gulf hair hall hammer hammock hand harbor harp harvest hat hawk hazel heart hedge heel hen herb hero "
    "highway hill hinge hive honey hood hook horn horse hotel hour house husband insect iron island ivy jacket jam jar "
    "jewel journal journey judge juice jungle kettle key king kitchen kite kitten knee knife knight knot ladder lady "
    "lake lamb lamp lantern laundry lawn lawyer leaf leather lemon letter lettuce library lily lime linen lion lip "
    "lizard lobster lock log lord lunch machine magnet mail mango mantle map maple marble market mask mast meadow meal "
    "medal melody melon merchant meteor mill mine mirror mitten monkey month moon mosaic moss moth mother motor mound "
    "mountain mouse mouth mule museum mushroom music nail napkin neck needle nephew nest net night north nose notebook "
    "novel nurse nut oak oasis oat ocean octopus office oil onion opera orchard organ ostrich otter oven owl ox "
    "package page paint palace palm pan panda panther paper parade park parrot pasta path peach peacock peak pear "
    "pearl pebble pen pencil pepper perfume piano picnic picture pie pigeon pillar pillow pilot pine pipe pirate plant "
    "plate plaza plum pocket poem poet pond pony pool porch port potato pottery powder prairie prince prison prize "
    "pumpkin pupil puppet puzzle pyramid quarry quartz queen quilt rabbit raccoon radio radish raft rail rain rainbow "
    "raven razor reef ribbon rice ring river road robe robin robot rock rocket roof room rooster root rope rose ruby "
    "rug sack saddle sail sailor salad salmon salt sand sandal sauce saucer scarf scholar school scissors screen sea "
    "seal season seat seed shadow shark shed sheep shelf shell shepherd ship shirt shoe shop shore shovel shrub sister "
    "skirt sky sled slipper smoke snail snake snow soap sock sofa soil soldier song soup south spark sparrow spider "
    "spoon spring square squirrel stable stage stair stamp star statue steam steel stem stone stool store storm stove "
    "stream street string student sugar suit summer sun supper swamp swan table tailor tale teacher temple tent "
    "theater thorn thread throne thumb thunder ticket tide tiger timber toad toast toe tomato tool tooth torch tower "
    "town toy tractor train tray treasure tree trumpet trunk tulip tunnel turkey turtle twig uncle valley vase vault "
    "veil velvet village vine violin volcano voyage wagon waist wall walnut walrus wasp water wave wax weaver wedding "
    "well whale wheat wheel whistle widow wife willow window wine wing winter wizard wolf wood wool worm wrist yacht "
    "yard yarn year zebra zoo";

constexpr std::string_view kVerbs =
    "accept admire admit advise agree allow amuse announce appear applaud argue arrive ask attach avoid bake balance "
    "bathe beg begin behave believe belong bend blame bless blink boil borrow bounce bow breathe bring build burn buy "
    "call carry carve catch cheer choose chop claim clap climb collect combine compare complain confess confuse "
    "consider contain continue cough count cover crawl cry dare decide decorate delay deliver deny depend describe "
    "destroy develop dig disagree discover divide draw dream drift drink drive drop earn eat encourage enjoy enter "
    "escape examine excite expect explain explore fade fail fall fasten fetch fight fill find float fold follow forget "
    "forgive gather give glow grab greet grin grow guess guide happen hate heal hear help hesitate hide hope hug hum "
    "hurry imagine improve include increase inform insist invent invite join jump kick kneel knit know land laugh "
    "learn leave lend lift listen live look love manage march marry measure melt mend mix move multiply name notice "
    "obey observe obtain occur offer order paddle pause pay peel perform permit pick pinch play please plead point "
    "polish pour practise pray prefer prepare preserve pretend prevent promise protect provide pull punish push "
    "realise receive recognise reduce reflect refuse regret relax release rely remain remember remind remove repair "
    "repeat replace reply request rescue rest return ride rinse rise roll run rush satisfy save say scatter scratch "
    "search see sell send separate serve settle shake share shave shiver shout shrink shut sigh sing sit sketch sleep "
    "slide smell smile sneeze solve speak spell spend spill spin stand stare start stay steal stir stop stretch strike "
    "study succeed suffer suggest supply support suppose surprise surround swallow sweep swim swing talk taste teach "
    "tease tell thank think throw tickle touch trade travel tremble trust try turn twist understand unpack vanish "
    "visit wait wake walk wander want warn wash waste watch weigh welcome whisper win wink wipe wish wonder work worry "
    "wrap write yawn yell";

std::vector<std::string_view> split(std::string_view list) {
  std::vector<std::string_view> words;
  while (!list.empty()) {
    const size_t end = std::min(list.find(' '), list.size());
    words.push_back(list.substr(0, end));
    list.remove_prefix(std::min(end + 1, list.size()));
  }
  return words;
}

}  // namespace

const std::vector<std::string_view>& adjectives() {
  static const std::vector<std::string_view> words = split(kAdjectives);
  return words;
}

const std::vector<std::string_view>& nouns() {
  static const std::vector<std::string_view> words = split(kNouns);
  return words;
}

const std::vector<std::string_view>& verbs() {
  static const std::vector<std::string_view> words = split(kVerbs);
  return words;
}

}  // namespace attend
